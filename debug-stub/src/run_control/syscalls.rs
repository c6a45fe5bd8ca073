//! The system calls that each thread makes, for seccomp filters.
#![forbid(unsafe_code)]

macro_rules! calls {
    ($($(#[$cfg:meta])? $name:ident = $number:ident),* $(,)?) => {
        &[$($(#[$cfg])? (stringify!($name), libc::$number as i64)),*]
    };
}

macro_rules! kick_calls {
    ($($more:tt)*) => {
        calls![
            futex = SYS_futex,
            getpid = SYS_getpid,
            tgkill = SYS_tgkill,
            $($more)*
        ]
    };
}

macro_rules! controller_calls {
    ($($more:tt)*) => {
        kick_calls![
            close = SYS_close,
            #[cfg(debug_assertions)]
            fcntl = SYS_fcntl,
            recvfrom = SYS_recvfrom,
            sendto = SYS_sendto,
            $($more)*
        ]
    };
}

/// Name and number of every system call in [`VcpuThreads`](super::VcpuThreads)'s
/// [`kick`](super::Kick::kick), on the thread that calls it.
pub const KICK_SYSCALLS: &[(&str, i64)] = kick_calls![];

/// Name and number of every system call that the controller's thread makes in
/// [`AllStop`](super::AllStop), [`KICK_SYSCALLS`] included. `close` is among them because the last of the
/// two threads that use a wake pipe closes it. `fcntl` is among them in builds with debug assertions:
/// the standard library asserts with it that the descriptor it closes is open.
///
/// Not among them: `socketpair` and `ioctl(FIONBIO)` of [`AllStop::new`](super::AllStop::new) and
/// [`AllStop::add`](super::AllStop::add), and the allocator's and the standard library's own.
pub const CONTROLLER_SYSCALLS: &[(&str, i64)] = controller_calls![];

/// Name and number of every system call that a vCPU's thread makes in
/// [`VcpuHandle`](super::VcpuHandle), [`VcpuThreads::enter`](super::VcpuThreads::enter) and
/// [`Entered`](super::Entered), [`CONTROLLER_SYSCALLS`] included: the first vCPU to stop kicks the
/// others, and wakes the controller.
///
/// A thread inherits the filters of the one that spawns it: that one's must allow them, too.
///
/// Not among them: `KVM_RUN`, which is the VMM's; the ioctls of the stepper, which are
/// `kvm::IOCTLS`; the allocator's and the standard library's own.
pub const VCPU_SYSCALLS: &[(&str, i64)] = controller_calls![
    gettid = SYS_gettid,
    mmap = SYS_mmap,
    munmap = SYS_munmap,
    rt_sigprocmask = SYS_rt_sigprocmask,
    // On return from the kick's signal handler.
    rt_sigreturn = SYS_rt_sigreturn,
];
