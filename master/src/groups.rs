//! What is proposed goes into the log in groups. One entry costs each master a few messages, a write and several
//! wake-ups; so does a group.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Most commands that go into the log together.
pub const GROUP_MAX: usize = 512;
/// A group waits at most so long for those that should come.
const GATHER_MAX: Duration = Duration::from_millis(1);
/// And at most so many times as long as the last one took: who makes a file and writes to it is back after two rounds.
const GATHER_ROUNDS: u32 = 2;

/// Gathers groups out of a queue, one after another: what comes while one is under way goes together. Clients that
/// ask again as soon as they are answered would make two groups of halves in turn, each of which waits for the other, so a group
/// waits for as many as were there last, though not for long.
pub struct Groups<T> {
    queue: mpsc::Receiver<T>,
    pause: Pause,
    /// How many were under way or waited when the last group was done.
    expected: usize,
    /// How long to wait for them.
    patience: Duration,
    began: Instant,
}

impl<T> Groups<T> {
    /// Of this queue.
    pub fn new(queue: mpsc::Receiver<T>) -> io::Result<Groups<T>> {
        let (expected, patience, began) = (1, Duration::ZERO, Instant::now());
        Ok(Groups { queue, pause: Pause::new()?, expected, patience, began })
    }

    /// The next group; an empty one if there will be none.
    pub async fn next(&mut self) -> Vec<T> {
        let mut group = vec![];
        self.queue.recv_many(&mut group, GROUP_MAX).await;
        // Requests that have arrived already get here before it goes.
        tokio::task::yield_now().await;
        let until = Instant::now() + self.patience;
        loop {
            while group.len() < GROUP_MAX
                && let Ok(more) = self.queue.try_recv()
            {
                group.push(more);
            }
            if group.is_empty() || group.len() >= self.expected.min(GROUP_MAX) || Instant::now() >= until {
                break;
            }
            tokio::select! {
                biased;
                more = self.queue.recv() => match more {
                    Some(more) => group.push(more),
                    None => break,
                },
                () = self.pause.until(until) => break,
            }
        }
        self.began = Instant::now();
        group
    }

    /// A group of so many is done.
    pub fn done(&mut self, len: usize) {
        self.expected = len + self.queue.len();
        self.patience = (GATHER_ROUNDS * self.began.elapsed()).min(GATHER_MAX);
    }
}

/// Pauses that are shorter than a tick of the runtime's timers, which is a millisecond.
struct Pause {
    timer: AsyncFd<OwnedFd>,
    /// For when it is set: a pause that is broken off and goes on costs no system call.
    set: Option<Instant>,
}

impl Pause {
    fn new() -> io::Result<Pause> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "what takes its place is unsafe, for what does not keep its descriptor"
        )]
        AsyncFd::new(timer).map(|timer| Pause { timer, set: None })
    }

    async fn until(&mut self, end: Instant) {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        if self.set != Some(end) {
            // No time at all would never come.
            let time = end.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
            let it_value = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).expect("the time is in range");
            self.set = Some(end);
        }
        loop {
            let mut ready = self.timer.readable().await.expect("the runtime runs");
            match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut [0; 8])?)) {
                Ok(read) => break assert_eq!(read.expect("a timer can be read"), 8),
                Err(_not_yet) => {}
            }
        }
        self.set = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn groups() -> (mpsc::Sender<u32>, Groups<u32>) {
        let (send, queue) = mpsc::channel(2 * GROUP_MAX);
        (send, Groups::new(queue).expect("there are descriptors"))
    }

    async fn next(groups: &mut Groups<u32>) -> Vec<u32> {
        tokio::time::timeout(LIMIT, groups.next()).await.expect("in time")
    }

    #[tokio::test]
    async fn a_group_waits_for_as_many_as_there_were() {
        let (send, mut groups) = groups();
        send.try_send(1).expect("room");
        send.try_send(2).expect("room");
        assert_eq!(next(&mut groups).await, [1, 2]);
        send.try_send(3).expect("room");
        groups.done(2);
        groups.patience = 2 * LIMIT;
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            send.send(4).await.expect("somebody takes it");
            tokio::time::sleep(Duration::from_millis(5)).await;
            send.send(5).await.expect("somebody takes it");
            // It is not closed: only the number tells that they are all there.
            std::future::pending::<()>().await;
        });
        assert_eq!(next(&mut groups).await, [3, 4, 5]);
    }

    #[tokio::test]
    async fn who_does_not_come_is_not_waited_for_long() {
        let (send, mut groups) = groups();
        (groups.expected, groups.patience) = (8, Duration::from_millis(1));
        send.try_send(1).expect("room");
        assert_eq!(next(&mut groups).await, [1]);
        groups.done(1);
        assert_eq!(groups.expected, 1);
        assert!(groups.patience <= GATHER_MAX);
    }

    #[tokio::test]
    async fn one_alone_does_not_wait() {
        let (send, mut groups) = groups();
        groups.patience = 2 * LIMIT;
        send.try_send(1).expect("room");
        assert_eq!(next(&mut groups).await, [1]);
    }

    #[tokio::test]
    async fn groups_are_bounded_and_end_with_the_queue() {
        let (send, mut groups) = groups();
        (groups.expected, groups.patience) = (2 * GROUP_MAX, 2 * LIMIT);
        (0..GROUP_MAX as u32 + 1).for_each(|n| send.try_send(n).expect("room"));
        drop(send);
        assert_eq!(next(&mut groups).await.len(), GROUP_MAX);
        assert_eq!(next(&mut groups).await, [GROUP_MAX as u32]);
        assert!(next(&mut groups).await.is_empty());
    }
}
