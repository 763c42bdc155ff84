//! What a client decides, without sockets: request numbers, where a range of a file lies, what a
//! refusal means for a retry.

mod layout;
mod retry;
mod session;

pub use layout::{Layout, Span};
pub use retry::{Next, next_after};
pub use session::{Session, Ticket};
