//! What is asked begins on the thread that was asked: until it first waits, nobody need be woken.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use tokio::runtime::Handle;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The rest of a future that waits.
struct Rest {
    runtime: Handle,
    state: Mutex<State>,
}

enum State {
    /// It is in its first step; what it waits for has not come yet.
    First,
    /// What it waits for came before it was put here.
    Woken,
    /// It waits.
    Waits(Task),
    /// It is a task of the runtime.
    Spawned,
}

impl Wake for Rest {
    fn wake(self: Arc<Rest>) {
        let mut state = self.state.lock().expect("never poisoned");
        *state = match std::mem::replace(&mut *state, State::Spawned) {
            State::First | State::Woken => State::Woken,
            State::Waits(task) => {
                self.runtime.spawn(task);
                State::Spawned
            }
            State::Spawned => State::Spawned,
        };
    }
}

/// Takes the first step of a future here. If it has to wait, the rest of it is a task of the runtime as soon as that for
/// which it waits has come.
pub fn begin(runtime: &Handle, future: impl Future<Output = ()> + Send + 'static) {
    let mut task: Task = Box::pin(future);
    let rest = Arc::new(Rest { runtime: runtime.clone(), state: Mutex::new(State::First) });
    let waker = Waker::from(rest.clone());
    let _entered = runtime.enter();
    if task.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Ready(()) {
        return;
    }
    let mut state = rest.state.lock().expect("never poisoned");
    match *state {
        State::First => *state = State::Waits(task),
        _ => drop(runtime.spawn(task)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::{ThreadId, current};
    use std::time::Duration;
    use tokio::sync::oneshot;

    const LIMIT: Duration = Duration::from_secs(10);

    async fn done(told: oneshot::Receiver<ThreadId>) -> ThreadId {
        tokio::time::timeout(LIMIT, told).await.expect("in time").expect("it is told")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_first_step_is_taken_here_and_the_rest_when_it_is_woken() {
        let (go, gone) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let runtime = Handle::current();
        let here = std::thread::spawn(move || {
            begin(&runtime, async move {
                let first = current().id();
                gone.await.expect("it is sent");
                tell.send(first).expect("somebody waits");
            });
            current().id()
        });
        let here = here.join().expect("it does not panic");
        go.send(()).expect("somebody waits");
        assert_eq!(done(told).await, here);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_is_woken_in_the_first_step_goes_on() {
        let (tell, told) = oneshot::channel();
        begin(&Handle::current(), async move {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            tell.send(current().id()).expect("somebody waits");
        });
        done(told).await;
    }

    /// A wake-up from another thread at any moment of the first step is not lost.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_up_is_lost() {
        let runtime = Handle::current();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        const TIMES: usize = 20_000;
        let all = std::thread::spawn(move || {
            for _ in 0..TIMES {
                let (go, gone) = oneshot::channel();
                let tell = tell.clone();
                runtime.spawn(async move { go.send(()) });
                begin(&runtime, async move {
                    gone.await.expect("it is sent");
                    tell.send(()).expect("somebody counts");
                });
            }
        });
        for _ in 0..TIMES {
            tokio::time::timeout(LIMIT, told.recv()).await.expect("in time").expect("one more");
        }
        all.join().expect("it does not panic");
    }
}
