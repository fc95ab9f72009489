//! Rename (0x0109): moves a name; the reply is `Renamed`.

use crate::codec::{DecodeError, Name};
use crate::macros::{bits, message};
use crate::types::Ino;

bits! {
    /// renameat2(2) flags.
    pub struct RenameFlags {
        /// Fail with EEXIST where the new name exists.
        NOREPLACE = 1;
        /// Exchange the two.
        EXCHANGE = 2;
    }
}

message! {
    /// Moves a name.
    pub struct Rename<'a>: 20 {
        /// The directory.
        dir: Ino,
        /// Directory of the new name.
        new_dir: Ino,
        /// How.
        flags: RenameFlags,
    }
    tail {
        /// Name in `dir`.
        name: &'a [u8] = Name,
        /// Name in `new_dir`.
        new_name: &'a [u8] = Name,
    }
    check check;
}

impl Rename<'_> {
    fn check(&self) -> Result<(), DecodeError> {
        let both = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        if self.flags.has(both) {
            return Err(DecodeError::Value("NOREPLACE and EXCHANGE exclude each other"));
        }
        Ok(())
    }
}
