//! Requests under way: their numbers, and how many there may be.

use client_core::{Session, Ticket};
use common::{ClientId, RequestId};
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::Notify;

/// A wake-up that was missed is made up for after this.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The requests of one client that have not ended, in a window of bounded size.
pub(crate) struct Requests {
    session: Mutex<Session>,
    window: u64,
    ended: Notify,
}

/// A request under way. It ends when this is dropped: answered, given up, or its caller gone.
pub(crate) struct Open<'a> {
    requests: &'a Requests,
    request: RequestId,
}

impl Requests {
    /// A new client with at most so many numbers between its lowest request and its highest.
    pub fn new(window: u64) -> Requests {
        let session = Mutex::new(Session::new(ClientId(rand::random())));
        Requests { session, window, ended: Notify::new() }
    }

    /// The next request, as soon as the window has room.
    pub async fn begin(&self) -> Open<'_> {
        loop {
            let room = self.ended.notified();
            {
                let mut session = self.session.lock().expect("never poisoned");
                if !session.is_full(self.window) {
                    return Open { requests: self, request: session.begin() };
                }
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, room).await;
        }
    }
}

impl Open<'_> {
    /// Its name, through every retry.
    pub fn id(&self) -> RequestId {
        self.request
    }

    /// As it is sent now.
    pub fn ticket(&self) -> Ticket {
        self.requests.session.lock().expect("never poisoned").ticket(self.request)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.requests.session.lock().expect("never poisoned").end(self.request);
        self.requests.ended.notify_one();
    }
}
