//! What a client decides, without sockets: request numbers, where a range of a file lies, what a
//! refusal means for a retry, when a second replica is asked, how many writes are
//! under way.

mod hedge;
mod layout;
mod retry;
mod session;
mod window;

pub use hedge::Hedge;
pub use layout::{Layout, Span};
pub use retry::{Next, next_after};
pub use session::{Session, Ticket};
pub use window::Window;
