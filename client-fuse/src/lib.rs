//! (client-fuse)
