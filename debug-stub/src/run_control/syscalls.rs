//! The system calls that each thread makes, for seccomp filters.
#![forbid(unsafe_code)]

macro_rules! calls {
    ($($(#[$cfg:meta])? $name:ident = $number:ident),* $(,)?) => {
        &[$($(#[$cfg])? (stringify!($name), libc::$number as i64)),*]
    };
}

/// Name and number of every system call in [`VcpuThreads`](super::VcpuThreads)'s
/// [`kick`](super::Kick::kick), on the thread that calls it, with glibc 2.36. `rt_sigprocmask` is
/// `pthread_kill`'s; another C library may call others (musl: `tkill`).
pub const KICK_SYSCALLS: &[(&str, i64)] = calls![
    futex = SYS_futex,
    getpid = SYS_getpid,
    // Of a thread that kicks itself.
    gettid = SYS_gettid,
    rt_sigprocmask = SYS_rt_sigprocmask,
    tgkill = SYS_tgkill,
];

/// Name and number of every system call that a vCPU's thread makes in
/// [`VcpuHandle`](super::VcpuHandle), [`VcpuThreads::enter`](super::VcpuThreads::enter) and
/// [`Entered`](super::Entered), [`KICK_SYSCALLS`] included: the first vCPU to stop kicks the others.
///
/// Not among them: `KVM_RUN`, which is the VMM's; the ioctls of the stepper, which are
/// `kvm::IOCTLS`; the allocator's and the standard library's own. `fcntl` is among them in builds
/// with debug assertions: the standard library asserts with it that the descriptor it closes is open.
pub const VCPU_SYSCALLS: &[(&str, i64)] = calls![
    close = SYS_close,
    #[cfg(debug_assertions)]
    fcntl = SYS_fcntl,
    futex = SYS_futex,
    getpid = SYS_getpid,
    gettid = SYS_gettid,
    mmap = SYS_mmap,
    munmap = SYS_munmap,
    recvfrom = SYS_recvfrom,
    rt_sigprocmask = SYS_rt_sigprocmask,
    // On return from the kick's signal handler.
    rt_sigreturn = SYS_rt_sigreturn,
    sendto = SYS_sendto,
    tgkill = SYS_tgkill,
];

/// Name and number of every system call that the controller's thread makes in
/// [`AllStop`](super::AllStop), [`KICK_SYSCALLS`] included. `close` is among them because the last of the
/// two threads that use a wake pipe closes it; for `fcntl` see [`VCPU_SYSCALLS`].
///
/// Not among them: `socketpair` and `ioctl(FIONBIO)` of [`AllStop::new`](super::AllStop::new) and
/// [`AllStop::add`](super::AllStop::add), and the allocator's and the standard library's own.
pub const CONTROLLER_SYSCALLS: &[(&str, i64)] = calls![
    close = SYS_close,
    #[cfg(debug_assertions)]
    fcntl = SYS_fcntl,
    futex = SYS_futex,
    getpid = SYS_getpid,
    gettid = SYS_gettid,
    recvfrom = SYS_recvfrom,
    rt_sigprocmask = SYS_rt_sigprocmask,
    sendto = SYS_sendto,
    tgkill = SYS_tgkill,
];
