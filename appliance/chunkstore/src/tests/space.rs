//! Full devices, full logs, growing.
