//! Flipped bits, I/O errors, damaged superblocks.
