//! A ready kick for vCPUs of `/dev/kvm`.
#![expect(
    unsafe_code,
    reason = "signals and the shared page of a vCPU have no safe interface in std"
)]
#![expect(
    clippy::disallowed_types,
    reason = "this is an adapter with threads: the core locks nothing"
)]

use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use kvm_bindings::kvm_run;
use libc::{c_int, c_void, pid_t};
use thiserror::Error;
use vcpu_caps::VcpuId;

use super::all_stop::Kick;

/// The kick signal could not be installed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InstallError {
    /// A real-time signal is refused with `EAGAIN` while the user's queue of signals is full, and a
    /// kick must arrive. A standard signal is never refused: the kernel merges it with one that
    /// waits.
    #[error("signal {0} is a real-time signal, which can be refused: choose a standard one")]
    RealTime(c_int),
    /// The process handles the signal already.
    #[error("signal {0} has a handler already: choose another one")]
    InUse(c_int),
    /// The system refuses the signal.
    #[error("signal {signal} cannot be handled")]
    Refused {
        /// The signal.
        signal: c_int,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The first real-time signal of Linux; the C library keeps the first few for itself.
const FIRST_REAL_TIME: c_int = 32;

/// A signal whose handler does nothing: its arrival makes `KVM_RUN` return.
///
/// # System calls
/// `rt_sigaction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KickSignal(c_int);

extern "C" fn leave_guest(_: c_int) {}

impl KickSignal {
    /// SIGUSR1.
    ///
    /// # Errors
    /// If the process handles it already.
    pub fn usual() -> Result<Self, InstallError> {
        Self::install(libc::SIGUSR1)
    }

    /// Installs the handler for the whole process. Installing it again is no error.
    ///
    /// # Errors
    /// If the signal is a real-time signal, has another handler, or cannot have one.
    pub fn install(signal: c_int) -> Result<Self, InstallError> {
        if signal >= FIRST_REAL_TIME {
            return Err(InstallError::RealTime(signal));
        }
        let handler: extern "C" fn(c_int) = leave_guest;
        let old = sigaction(signal, None)?;
        if old == handler as libc::sighandler_t {
            return Ok(Self(signal));
        }
        if old != libc::SIG_DFL && old != libc::SIG_IGN {
            return Err(InstallError::InUse(signal));
        }
        sigaction(signal, Some(handler))?;
        Ok(Self(signal))
    }

    /// The signal's number.
    #[must_use]
    pub fn number(self) -> c_int {
        self.0
    }
}

/// Returns the handler of a signal, and installs another one if there is one.
fn sigaction(
    signal: c_int,
    handler: Option<extern "C" fn(c_int)>,
) -> Result<libc::sighandler_t, InstallError> {
    // SAFETY: all zeroes is a valid `sigaction`: the default handler, an empty mask, no flags.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    let new = handler.map_or(ptr::null(), |handler| {
        new.sa_sigaction = handler as libc::sighandler_t;
        // The VMM's own reads and writes on a vCPU's thread go on. KVM_RUN is never restarted.
        new.sa_flags = libc::SA_RESTART;
        &raw const new
    });
    // SAFETY: `new` is null or points to a `sigaction` that lives through the call and whose handler
    // does nothing; so does `old`.
    let result = unsafe { libc::sigaction(signal, new, &raw mut old) };
    if result != 0 {
        return Err(InstallError::Refused {
            signal,
            source: io::Error::last_os_error(),
        });
    }
    Ok(old.sa_sigaction)
}

/// `immediate_exit` of a vCPU's run structure, mapped a second time, for a VMM with a kick of its own:
/// any thread and a signal handler may store it, whatever the VMM's `VcpuFd` lends and whatever becomes
/// of it.
///
/// # System calls
/// `mmap`; `munmap` when dropped.
#[derive(Debug)]
pub struct ImmediateExit {
    page: NonNull<c_void>,
}

/// The run structure's fixed part is smaller than the smallest page.
const MAPPED: usize = 4096;

impl ImmediateExit {
    /// Maps the page. `vcpu` is the vCPU's descriptor, a `VcpuFd` for instance.
    ///
    /// # Errors
    /// If it is not a vCPU's, or the process has no room for another mapping.
    pub fn map(vcpu: &impl AsRawFd) -> io::Result<Self> {
        const { assert!(offset_of!(kvm_run, immediate_exit) < MAPPED) };
        // SAFETY: a new shared mapping, at an address that the kernel chooses.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                MAPPED,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { page })
    }

    /// The byte. While it is 1, `KVM_RUN` returns `EINTR` at once.
    #[must_use]
    pub fn byte(&self) -> &AtomicU8 {
        let byte = self.page.cast::<u8>();
        // SAFETY: within the mapping, as `map` asserts.
        let byte = unsafe { byte.add(offset_of!(kvm_run, immediate_exit)) };
        // SAFETY: mapped while `self` lives, and an atomic byte has no alignment.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: `map` made the mapping, and `byte` lends nothing beyond `self`.
        unsafe { libc::munmap(self.page.as_ptr(), MAPPED) };
    }
}

// SAFETY: the mapping belongs to the process, and only an atomic byte of it is used.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

#[derive(Debug)]
struct Thread {
    /// `gettid`. A thread that has ended is not found; if another has got its id since, that one is
    /// interrupted once for nothing. A `pthread_t` of a thread that has ended must not be used at all,
    /// and [`Entered`] may be forgotten.
    id: pid_t,
    /// For a thread that is parked.
    handle: thread::Thread,
    immediate_exit: Arc<ImmediateExit>,
}

/// The threads that run vCPUs, and the kick that reaches them.
///
/// A kick sets the vCPU's `immediate_exit` and sends its thread the signal. A `KVM_RUN` that begins
/// later returns at once; one that has begun is ended by the signal. Both return `EINTR`.
///
/// The signal also interrupts `poll`, `epoll_wait` and `nanosleep`. A thread in [`thread::park`] is unparked:
/// a vCPU that is halted or paused, for instance. A condition variable is not reached: a VMM whose vCPUs
/// wait for one wakes it in its own [`Kick`], which calls this one too.
///
/// Each vCPU's thread calls [`enter`](Self::enter) once, and before each `KVM_RUN` [`Entered::may_run`].
/// Needs `KVM_CAP_IMMEDIATE_EXIT` (Linux 4.11).
///
/// ```no_run
/// # use std::sync::Arc;
/// # use debug_stub::{StopReason, VcpuId};
/// # use debug_stub::run_control::{AllStop, KickSignal, Order, VcpuThreads};
/// # fn thread(mut fd: kvm_ioctls::VcpuFd) -> Result<(), Box<dyn std::error::Error>> {
/// let threads = Arc::new(VcpuThreads::new(KickSignal::usual()?));
/// let guest = AllStop::new(Arc::clone(&threads))?;
/// let mut vcpu = guest.add(VcpuId(0))?;
/// // On the vCPU's thread:
/// let entered = threads.enter(VcpuId(0), &fd)?;
/// while let Order::Run(order, armed) = vcpu.wait_for_order() {
///     while entered.may_run(|| vcpu.must_stop()) {
///         match fd.run() {
///             Err(error) if error.errno() == libc::EINTR => {} // a kick: look again
///             exit => { /* serve it */ }
///         }
///     }
///     vcpu.report(StopReason::Interrupted);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # System calls
/// - `enter`: `mmap` of the vCPU's descriptor, `rt_sigprocmask`, `gettid`. Dropping its result:
///   `munmap`.
/// - `kick`: `getpid`, `tgkill`.
/// - `may_run`: none.
/// - On return from the signal handler: `rt_sigreturn`.
/// - `futex` in all but `may_run` when the lock is contended.
///
/// As constants: [`KICK_SYSCALLS`](super::KICK_SYSCALLS), [`VCPU_SYSCALLS`](super::VCPU_SYSCALLS).
#[derive(Debug)]
pub struct VcpuThreads {
    signal: KickSignal,
    /// The thread that entered each vCPU last.
    threads: Mutex<BTreeMap<VcpuId, Thread>>,
}

impl VcpuThreads {
    /// No threads yet.
    #[must_use]
    pub fn new(signal: KickSignal) -> Self {
        Self {
            signal,
            threads: Mutex::default(),
        }
    }

    /// The calling thread runs this vCPU for as long as the result lives, and can be kicked. Unblocks
    /// the signal for the thread. A thread that entered the same vCPU before can no longer be kicked.
    ///
    /// `fd` is the vCPU's descriptor, a `VcpuFd` for instance.
    ///
    /// # Errors
    /// If the run structure cannot be mapped or the signal cannot be unblocked.
    pub fn enter(&self, vcpu: VcpuId, fd: &impl AsRawFd) -> io::Result<Entered<'_>> {
        let immediate_exit = Arc::new(ImmediateExit::map(fd)?);
        self.signal.unblock()?;
        let thread = Thread {
            id: current_thread(),
            handle: thread::current(),
            immediate_exit: Arc::clone(&immediate_exit),
        };
        self.lock().insert(vcpu, thread);
        Ok(Entered {
            threads: self,
            vcpu,
            immediate_exit,
            thread_bound: PhantomData,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VcpuId, Thread>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kick for VcpuThreads {
    fn kick(&self, vcpu: VcpuId) {
        let threads = self.lock();
        let Some(thread) = threads.get(&vcpu) else {
            // It has not begun, and finds the request before it enters; or it has ended.
            return;
        };
        // First the byte: the thread may be on its way to KVM_RUN.
        thread.immediate_exit.byte().store(1, Ordering::SeqCst);
        if let Err(error) = signal_thread(thread.id, self.signal.0) {
            if error.raw_os_error() == Some(libc::ESRCH) {
                tracing::debug!(%vcpu, "a vCPU's thread has ended");
            } else {
                // Not expected: a standard signal to a thread of this process.
                tracing::error!(%vcpu, %error, "a vCPU's thread could not be kicked");
            }
        }
        thread.handle.unpark();
    }
}

fn current_thread() -> pid_t {
    // SAFETY: has no precondition.
    unsafe { libc::gettid() }
}

/// `tgkill`, within this process.
fn signal_thread(id: pid_t, signal: c_int) -> io::Result<()> {
    // SAFETY: has no precondition.
    let process = unsafe { libc::getpid() };
    // SAFETY: takes numbers only.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, process, id, signal) };
    if sent != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Kick for Arc<VcpuThreads> {
    fn kick(&self, vcpu: VcpuId) {
        VcpuThreads::kick(self, vcpu);
    }
}

impl KickSignal {
    fn unblock(self) -> io::Result<()> {
        // SAFETY: all zeroes is a valid `sigset_t`, which `sigemptyset` initialises anyway.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` lives through the call.
        unsafe { libc::sigemptyset(&raw mut set) };
        // SAFETY: as above; the number is a signal's, as it has a handler.
        unsafe { libc::sigaddset(&raw mut set, self.0) };
        // SAFETY: `set` is an initialised set; the old one is not asked for.
        let error =
            unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(())
    }
}

/// While it lives, the thread that made it runs a vCPU and can be kicked.
#[derive(Debug)]
pub struct Entered<'a> {
    threads: &'a VcpuThreads,
    vcpu: VcpuId,
    immediate_exit: Arc<ImmediateExit>,
    /// The signal is for this thread: not `Send`.
    thread_bound: PhantomData<*mut ()>,
}

impl Entered<'_> {
    /// Returns `true` if the thread may call `KVM_RUN` now, `false` if `must_stop` is true. In the
    /// order of [the contract](super#the-kick-contract): `immediate_exit` is cleared, then the
    /// request is looked at.
    ///
    /// To complete an access without running the guest, call [`exit_at_once`](Self::exit_at_once) and
    /// then `KVM_RUN`, without asking.
    #[must_use]
    pub fn may_run(&self, must_stop: impl FnOnce() -> bool) -> bool {
        self.immediate_exit.byte().store(0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        !must_stop()
    }
}

impl Entered<'_> {
    /// The next `KVM_RUN` completes an access if one is pending, and runs no instruction: sets
    /// `immediate_exit`.
    pub fn exit_at_once(&self) {
        self.immediate_exit.byte().store(1, Ordering::SeqCst);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut threads = self.threads.lock();
        if threads
            .get(&self.vcpu)
            .is_some_and(|thread| Arc::ptr_eq(&thread.immediate_exit, &self.immediate_exit))
        {
            threads.remove(&self.vcpu);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a kick needs a thread to reach")]
mod tests {
    use std::fs::File;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// A page that KVM's run structure could be.
    fn run_page() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MAPPED as u64).unwrap();
        file
    }

    #[test]
    fn a_kick_sets_the_byte_and_interrupts_a_system_call() {
        let threads = Arc::new(VcpuThreads::new(KickSignal::usual().unwrap()));
        let page = run_page();
        let (ready, entered) = channel();
        let thread = thread::spawn({
            let threads = Arc::clone(&threads);
            move || {
                let guard = threads.enter(VcpuId(0), &page).unwrap();
                ready.send(Arc::clone(&guard.immediate_exit)).unwrap();
                // Stands for KVM_RUN: poll is never restarted.
                // SAFETY: no descriptors.
                let result = unsafe { libc::poll(ptr::null_mut(), 0, 20_000) };
                assert_eq!(result, -1, "the poll was not interrupted");
                assert_eq!(guard.immediate_exit.byte().load(Ordering::SeqCst), 1);
                assert!(guard.may_run(|| false));
                assert_eq!(guard.immediate_exit.byte().load(Ordering::SeqCst), 0);
                assert!(!guard.may_run(|| true));
            }
        });
        let byte = entered.recv().unwrap();
        assert_eq!(byte.byte().load(Ordering::SeqCst), 0);
        // It may not be in the call yet, and a signal before that is a kick that only the byte
        // shows. A real KVM_RUN looks at the byte; poll does not.
        while !thread.is_finished() {
            threads.kick(VcpuId(0));
            thread::sleep(Duration::from_millis(10));
        }
        thread.join().unwrap();
    }

    #[test]
    fn a_kick_unparks_the_thread_also_before_it_parks() {
        let threads = Arc::new(VcpuThreads::new(KickSignal::usual().unwrap()));
        let guard = threads.enter(VcpuId(0), &run_page()).unwrap();
        threads.kick(VcpuId(0));
        thread::park();
        let from_elsewhere = Arc::clone(&threads);
        let kicker = thread::spawn(move || from_elsewhere.kick(VcpuId(0)));
        thread::park();
        kicker.join().unwrap();
        drop(guard);
    }

    #[test]
    fn a_kick_after_the_thread_has_ended_does_nothing() {
        let threads = VcpuThreads::new(KickSignal::usual().unwrap());
        threads.kick(VcpuId(3));
        let page = run_page();
        thread::scope(|scope| {
            scope.spawn(|| drop(threads.enter(VcpuId(3), &page).unwrap()));
        });
        threads.kick(VcpuId(3));
    }

    #[test]
    fn a_thread_that_was_replaced_does_not_take_its_successor_off() {
        let threads = VcpuThreads::new(KickSignal::usual().unwrap());
        let page = run_page();
        let first = threads.enter(VcpuId(0), &page).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| std::mem::forget(threads.enter(VcpuId(0), &page).unwrap()));
        });
        drop(first);
        assert_eq!(threads.lock().len(), 1);
        // Its thread has ended without a word.
        threads.kick(VcpuId(0));
    }

    /// A vCPU that is built again: `entered = threads.enter(...)` drops the old one last.
    #[test]
    fn a_vcpu_that_is_built_again_on_its_thread_can_be_kicked() {
        let threads = VcpuThreads::new(KickSignal::usual().unwrap());
        let (old, new) = (run_page(), run_page());
        let mut entered = threads.enter(VcpuId(0), &old).unwrap();
        let before = Arc::clone(&entered.immediate_exit);
        entered = threads.enter(VcpuId(0), &new).unwrap();
        threads.kick(VcpuId(0));
        assert_eq!(entered.immediate_exit.byte().load(Ordering::SeqCst), 1);
        assert_eq!(before.byte().load(Ordering::SeqCst), 0);
    }

    #[test]
    fn signals_that_can_be_refused_or_are_in_use_are_not_taken() {
        extern "C" fn other(_: c_int) {}
        assert!(matches!(
            KickSignal::install(libc::SIGRTMIN()),
            Err(InstallError::RealTime(_))
        ));
        sigaction(libc::SIGWINCH, Some(other)).unwrap();
        assert!(matches!(
            KickSignal::install(libc::SIGWINCH),
            Err(InstallError::InUse(libc::SIGWINCH))
        ));
        assert!(matches!(
            KickSignal::install(libc::SIGKILL),
            Err(InstallError::Refused { .. })
        ));
        assert_eq!(
            KickSignal::usual().unwrap(),
            KickSignal::install(libc::SIGUSR1).unwrap()
        );
    }

    /// `RLIMIT_SIGPENDING` counts the signals of all the user's processes: others may use it up.
    #[test]
    fn a_kick_arrives_while_the_queue_of_signals_is_full() {
        let limit = |new: Option<libc::rlim_t>| {
            let mut limit = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: `limit` lives through the call.
            let got = unsafe { libc::getrlimit(libc::RLIMIT_SIGPENDING, &raw mut limit) };
            assert_eq!(got, 0);
            let before = limit.rlim_cur;
            if let Some(new) = new {
                limit.rlim_cur = new;
                // SAFETY: as above.
                let set = unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const limit) };
                assert_eq!(set, 0);
            }
            before
        };
        let threads = VcpuThreads::new(KickSignal::usual().unwrap());
        let guard = threads.enter(VcpuId(0), &run_page()).unwrap();
        let before = limit(Some(0));
        let thread = current_thread();
        // The control: blocked, it would have to wait in the queue.
        let refused = {
            // SAFETY: all zeroes is a valid set.
            let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
            // SAFETY: `set` lives through the call.
            unsafe { libc::sigaddset(&raw mut set, libc::SIGRTMIN() + 1) };
            // SAFETY: as above.
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
            signal_thread(thread, libc::SIGRTMIN() + 1)
        };
        let sent = signal_thread(thread, threads.signal.0);
        threads.kick(VcpuId(0));
        limit(Some(before));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        sent.unwrap();
        assert_eq!(guard.immediate_exit.byte().load(Ordering::SeqCst), 1);
    }
}
