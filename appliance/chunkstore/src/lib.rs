//! (chunkstore)
