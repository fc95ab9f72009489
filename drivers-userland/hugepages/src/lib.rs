//! (hugepages)
