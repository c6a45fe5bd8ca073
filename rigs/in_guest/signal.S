# Runs under a stock kernel. Loads from address 0; the handler of SIGSEGV looks at its frame and skips the
# load. The exit status is 0 if nothing shows that the program was stepped:
# 1: no handler; 2: it did not run once; 3: it sees TF where the load was; 4: its own TF; 5: PUSHF after the
# load shows TF; 6: so does RFLAGS as SYSCALL stores it.

    .set SYS_RT_SIGACTION, 13
    .set SYS_RT_SIGRETURN, 15
    .set SYS_GETPID, 39
    .set SYS_EXIT, 60
    .set SIGSEGV, 11
    .set SA_SIGINFO, 0x4
    .set SA_RESTORER, 0x04000000
    .set TF, 1 << 8
# struct ucontext: gregs[] begins at 40 (sys/ucontext.h)
    .set UC_RIP, 40 + 16 * 8
    .set UC_RFLAGS, 40 + 17 * 8

    .text
    .globl _start
_start:
    movl $SYS_RT_SIGACTION, %eax
    movl $SIGSEGV, %edi
    leaq action(%rip), %rsi
    xorl %edx, %edx
    movl $8, %r10d
    syscall
    movl $1, %edi
    testl %eax, %eax
    jnz end
    xorl %ebx, %ebx

    .globl load
load:
    movq (%rbx), %rax
loaded:
    pushfq
    popq %rcx
    movl $5, %edi
    testl $TF, %ecx
    jnz end
    movl $SYS_GETPID, %eax
    syscall
    movl $6, %edi
    testl $TF, %r11d
    jnz end
    movl $2, %edi
    cmpl $1, handled(%rip)
    jne end
    xorl %edi, %edi
end:
    movl $SYS_EXIT, %eax
    syscall

# The context is at RDX.
handler:
    incl handled(%rip)
    movl $3, %edi
    testl $TF, UC_RFLAGS(%rdx)
    jnz end
    pushfq
    popq %rcx
    movl $4, %edi
    testl $TF, %ecx
    jnz end
    addq $(loaded - load), UC_RIP(%rdx)
    ret

restorer:
    movl $SYS_RT_SIGRETURN, %eax
    syscall

    .data
    .balign 8
action:
    .quad handler, SA_SIGINFO | SA_RESTORER, restorer, 0
handled:
    .long 0
