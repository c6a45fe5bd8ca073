//! A wait for descriptors that does not become a busy loop if the host refuses it.

use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, ppoll};
use nix::sys::time::TimeSpec;

/// How long a wait that the host has refused takes in its place. Without it the caller would be back at
/// once, and a refusal can last: `EINVAL` while the limit of open files is below their number.
const REFUSED: Duration = Duration::from_millis(10);

/// Waits until a descriptor is ready, a signal comes, or this much time has passed. Returns `true` if one is
/// ready. `what` is what a refusal means to the guest, for the log.
pub(crate) fn poll(polls: &mut [PollFd<'_>], time: Option<Duration>, what: &str) -> bool {
    match ppoll(polls, time.map(TimeSpec::from_duration), None) {
        Ok(ready) => ready > 0,
        Err(Errno::EINTR) => false,
        Err(error) => {
            tracing::error!(%error, "{what}");
            thread::sleep(REFUSED);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;
    use std::time::Instant;

    use nix::poll::PollFlags;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::*;

    /// In a process of its own: the limit is the whole process's.
    #[test]
    fn a_wait_that_is_refused_takes_time() {
        const CHILD: &str = "WAIT_THAT_IS_REFUSED";
        if std::env::var_os(CHILD).is_none() {
            let name = "wake::poll::tests::a_wait_that_is_refused_takes_time";
            let mut child = Command::new(std::env::current_exe().unwrap());
            let status = child.args(["--exact", name]).env(CHILD, "1").status();
            assert!(status.unwrap().success());
            return;
        }
        let file = tempfile::tempfile().unwrap();
        let mut polls = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        assert!(poll(&mut polls, None, "not refused"));
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
        let begun = Instant::now();
        for _ in 0..3 {
            assert!(!poll(&mut polls, None, "refused"));
        }
        assert!(begun.elapsed() >= 3 * REFUSED, "{:?}", begun.elapsed());
    }
}
