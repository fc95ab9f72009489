//! Done: the body of every reply that says no more than its status, or carries a payload alone.

use crate::macros::message;

message! {
    /// Nothing further.
    pub struct Done: 0 {}
}
