//! Scrub (0x0302): checks every block; the reply is `Done` with JSON as payload.

use crate::macros::{choice, message};

choice! {
    /// What to do with the scrubber.
    pub enum ScrubAction {
        /// Begin.
        Start = 0,
        /// Report.
        Status = 1,
        /// End early.
        Stop = 2,
    }
}

message! {
    /// Checks every block.
    pub struct Scrub: 2 {
        /// What to do.
        action: ScrubAction,
        /// Mend what can be mended.
        repair: bool,
    }
}
