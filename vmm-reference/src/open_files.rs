//! The limit of open files. A machine of 254 vCPUs needs more than the 1024 that many systems allow at first.

use std::error::Error as StdError;
use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit as far as this user may. It was low for programs that use `select`, as this one does not.
pub fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        } else {
            Ok(())
        }
    });
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// What to do about an error whose cause is that limit.
pub(crate) fn advice(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if number(error) == Some(libc::EMFILE) {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
            return Some(format!(
                "this process may have {hard} files open: raise that limit (ulimit -Hn), or choose fewer --cpus"
            ));
        }
        cause = error.source();
    }
    None
}

fn number(error: &(dyn StdError + 'static)) -> Option<i32> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        error.raw_os_error()
    } else if let Some(error) = error.downcast_ref::<vmm_sys_util::errno::Error>() {
        Some(error.errno())
    } else {
        error.downcast_ref::<Errno>().map(|errno| *errno as i32)
    }
}
