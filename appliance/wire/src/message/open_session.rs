//! OpenSession (0x0010): begins or resumes the session of the header's client.

use crate::macros::{bits, message};

bits! {
    /// Properties of a session.
    pub struct SessionFlags {
        /// The mount is read-only: no request of it changes anything.
        READ_ONLY = 1;
        /// Do not resume: whatever an earlier session of this client held is freed.
        FRESH = 2;
    }
}

message! {
    /// Begins or resumes the session of the header's client.
    pub struct OpenSession: 4 {
        /// How.
        flags: SessionFlags,
    }
}
