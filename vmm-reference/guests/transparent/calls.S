# System calls, far transfers, call gates, task switches, virtual-8086 mode.

    .macro PREPARE_SYSCALL handler, mask
    SET_MSR LSTAR, \handler
    SET_MSR_HIGH STAR, 0x180008
    SET_MSR FMASK, \mask
    .endm

# RING3 at, stack: to 64-bit user code. RING3_32: to 32-bit user code.
    .macro RING3 at, flags=2
    pushq $USER_DATA
    pushq $STACK - 0x100
    pushq $\flags
    pushq $USER_CODE64
    pushq $\at
    iretq
    .endm
    .macro RING3_32 at, flags=2
    pushl $USER_DATA
    pushl $STACK - 0x100
    pushl $\flags
    pushl $USER_CODE32
    pushl $\at
    iretl
    .endm

    .macro SYSCALL_GUEST name, mask
GUEST "calls/\name", long
    PREPARE_SYSCALL 2f, \mask
    RING3 1f
1:  nop
    syscall
    pushfq
    popq %rax
    stosq
    END
2:  movq %r11, %rax
    stosq
    pushfq
    popq %rax
    stosq
    sysretq
    .endm

SYSCALL_GUEST syscall_and_sysret, 0
SYSCALL_GUEST syscall_and_sysret_with_tf_in_fmask, TF
SYSCALL_GUEST syscall_and_sysret_as_linux, 0x257fd5

GUEST "calls/syscall_twice", long
    PREPARE_SYSCALL 2f, 0x257fd5
    RING3 1f
1:  syscall
    syscall
    nop
    END
2:  movq %r11, %rax
    stosq
    sysretq

# The kernel keeps R11 in memory, as every kernel does.
GUEST "calls/syscall_saves_r11_on_its_stack", long
    PREPARE_SYSCALL 2f, 0x257fd5
    RING3 1f
1:  stc
    syscall
    END
2:  movq %rsp, %rbx
    movq $STACK0, %rsp
    pushq %r11
    pushq %rcx
    movq 8(%rsp), %rax
    stosq
    popq %rcx
    popq %r11
    movq %rbx, %rsp
    sysretq

GUEST "calls/syscall_returns_by_iret", long
    PREPARE_SYSCALL 2f, 0x257fd5
    RING3 1f
1:  syscall
    pushfq
    popq %rax
    stosq
    END
2:  movq %rsp, %rbx
    movq $STACK0, %rsp
    pushq $USER_DATA
    pushq %rbx
    pushq %r11
    pushq $USER_CODE64
    pushq %rcx
    iretq

GUEST "calls/syscall_in_the_kernel", long
    PREPARE_SYSCALL 2f, 0
    syscall
2:  movq %r11, %rax
    stosq
    END

GUEST "calls/mov_ss_then_syscall", long
    PREPARE_SYSCALL 2f, 0
    movl $KERNEL_DATA, %eax
    movl %eax, %ss
    syscall
2:  movq %r11, %rax
    stosq
    pushfq
    popq %rax
    stosq
    END

GUEST "calls/sysret_to_32_bit_user_code", long
    PREPARE_SYSCALL 2f, 0
    movl $1f, %ecx
    movl $0x202, %r11d
    sysretl
    .code32
1:  pushfl
    popl %eax
    stosl
    END
    .code64
2:  ud2

GUEST "calls/sysret_that_sets_the_guests_tf", long
GATE 1, 3f
    PREPARE_SYSCALL 3f, 0
    movl $1f, %ecx
    movl $TF | 2, %r11d
    sysretq
1:  nop
    pushq $2
    popfq
    END
3:  incl DATA
    movq (%rsp), %rax
    stosq
    movq 16(%rsp), %rax
    stosq
    iretq

GUEST "calls/syscall_is_not_enabled", long
GATE 6, 1f
    movl $0xc0000080, %ecx
    rdmsr
    andl $~1, %eax
    wrmsr
    syscall
2:  END
1:  movq 16(%rsp), %rax
    stosq
    movq $2b, (%rsp)
    iretq

GUEST "calls/sysenter_and_sysexit", long
    SET_MSR 0x174, CODE64
    SET_MSR 0x175, STACK0
    SET_MSR 0x176, 2f
    RING3 1f
1:  movl $3f, %edx
    movq %rsp, %rcx
    sysenter
3:  pushfq
    popq %rax
    stosq
    END
2:  pushfq
    popq %rax
    stosq
    sysexitq

GUEST "calls/sysenter_from_32_bit_user_code", prot
    SET_MSR 0x174, CODE32
    SET_MSR 0x175, STACK0
    SET_MSR 0x176, 2f
    RING3_32 1f
1:  pushfl
    popl %eax
    stosl
    sysenter
2:  pushfl
    popl %eax
    stosl
    END

GUEST "calls/lretq_to_the_next_instruction", long
    pushq $CODE64
    pushq $1f
    lretq
1:  pushfq
    popq %rax
    stosq
    END

GUEST "calls/ljmp_through_memory", long
    movl $1f, DATA
    movw $CODE64, DATA + 4
    ljmpl *DATA
1:  pushfq
    popq %rax
    stosq
    END

GUEST "calls/lcall_and_lret", prot
    lcall $CODE32, $1f
    pushfl
    popl %eax
    stosl
    END
1:  pushfl
    popl %eax
    stosl
    lretl

GUEST "calls/lcall_in_real_mode", real
    lcall $0, $1f
    pushfw
    popw %ax
    stosw
    END
1:  pushfw
    popw %ax
    stosw
    lretw

GUEST "calls/int_in_real_mode", real
GATE 0x50, 1f
    int $0x50
    pushfw
    popw %ax
    stosw
    END
1:  pushw %bp
    movw %sp, %bp
    movw 6(%bp), %ax
    popw %bp
    stosw
    iretw

GUEST "calls/int_in_real_mode_that_copies_its_flags", real
GATE 0x50, 1f
    int $0x50
    pushfw
    popw %ax
    stosw
    END
1:  popw %bx
    popw %cx
    popw %ax
    stosw
    pushw %ax
    pushw %cx
    pushw %bx
    iretw

GUEST "calls/into", prot
GATE 4, 1f
    into
    movb $0x7f, %al
    incb %al
    into
    nop
    END
1:  movl 8(%esp), %eax
    stosl
    iretl

GUEST "calls/bound", prot
GATE 5, 1f
    movl $4, DATA
    movl $8, DATA + 4
    movl $6, %eax
    boundl %eax, DATA
    movl $9, %eax
    boundl %eax, DATA
2:  END
1:  movl 8(%esp), %eax
    stosl
    movl $2b, (%esp)
    iretl

GUEST "calls/int_through_a_trap_gate", long
GATE 0x50, 1f, type=0xf
    sti
    nop
    int $0x50
    cli
    END
1:  pushfq
    popq %rax
    stosq
    movq 16(%rsp), %rax
    stosq
    iretq

# Call gates do not store RFLAGS.
GUEST "calls/call_gate_to_the_same_ring", prot
CALL_TO 1f, CODE32
    lcall $CALL_GATE32, $0
    END
1:  pushfl
    popl %eax
    stosl
    lretl

GUEST "calls/call_gate_from_user_code", prot3
CALL_TO 1f, CODE32, 1
    pushl $0x77
    lcall $CALL_GATE32, $0
    pushfl
    popl %eax
    stosl
    END
1:  pushfl
    popl %eax
    stosl
    movl 8(%esp), %eax
    stosl
    lretl $4

GUEST "calls/call_gate_in_64_bit", long
CALL_TO 1f, CODE64
    movw $CALL_GATE64, DATA + 4
    lcalll *DATA
    END
1:  pushfq
    popq %rax
    stosq
    lretq

GUEST "calls/call_gate_from_64_bit_user_code", user
CALL_TO 1f, CODE64
    movw $CALL_GATE64, DATA + 4
    lcalll *DATA
    pushfq
    popq %rax
    stosq
    END
1:  pushfq
    popq %rax
    stosq
    lretq

# A handler in ring 1 or 2, on that ring's stack, which prints.
    .macro RING_HANDLER ring, selector
GUEST "calls/int_from_user_code_to_ring_\ring", prot3
GATE 0x50, 1f, selector=\selector
    int $0x50
    pushfl
    popl %eax
    stosl
    END
1:  movl 8(%esp), %eax
    outl %eax, $PRINT
    stosl
    iretl
    .endm
RING_HANDLER 1, RING1_CODE32
RING_HANDLER 2, RING2_CODE32

GUEST "calls/int_from_64_bit_user_code_to_ring_1", user
GATE 0x50, 1f, selector=RING1_CODE64
    int $0x50
    pushfq
    popq %rax
    stosq
    END
1:  movq 16(%rsp), %rax
    outl %eax, $PRINT
    stosq
    iretq

    .macro PREPARE_TASK entry, flags=2
    movl $\entry, TSS32_B + 0x20
    movl $\flags, TSS32_B + 0x24
    movl $STACK1, TSS32_B + 0x38
    movl $CODE32, TSS32_B + 0x4c
    movl $KERNEL_DATA, TSS32_B + 0x48
    movl $KERNEL_DATA, TSS32_B + 0x50
    movl $KERNEL_DATA, TSS32_B + 0x54
    .endm

# The old task's TSS has its EFLAGS at 0x24.
GUEST "calls/ljmp_to_a_task", prot
    PREPARE_TASK 1f
    ljmp $TASK_B, $0
1:  movl TSS32 + 0x24, %eax
    movl %eax, RESULTS
    pushfl
    popl RESULTS + 4
    END

GUEST "calls/lcall_to_a_task_and_back", prot
    PREPARE_TASK 1f
    lcall $TASK_B, $0
    pushfl
    popl %eax
    stosl
    movl TSS32_B + 0x24, %eax
    stosl
    END
1:  movl TSS32 + 0x24, %eax
    movl %eax, RESULTS + 8
    iretl

GUEST "calls/int_through_a_task_gate", prot
GATE 0x50, 0, type=5, selector=TASK_B
GATE 0xf0, 1f                           # for the check of each step: the task begins there
    PREPARE_TASK 1f
    int $0x50
    pushfl
    popl %eax
    stosl
    END
1:  movl TSS32 + 0x24, %eax
    movl %eax, RESULTS + 8
    iretl

GUEST "calls/fault_through_a_task_gate", prot
GATE 6, 0, type=5, selector=TASK_B
GATE 0xf0, 1f
    PREPARE_TASK 1f
    ud2
    END
1:  movl TSS32 + 0x24, %eax
    movl %eax, RESULTS + 8
    addl $2, TSS32 + 0x20               # not right before IRET: TCG stores an old AF in the TSS then
    movb $'t', %al
    outb %al, $PRINT
    iretl

GUEST "calls/ljmp_to_a_task_with_tf", prot
GATE 1, 2f
    PREPARE_TASK 1f, TF | 2
    ljmp $TASK_B, $0
1:  nop
    nop
    pushl $2
    popfl
    END
2:  incl DATA
    movl 8(%esp), %eax
    movl %eax, RESULTS
    iretl

# Virtual-8086 mode: CS and SS as in real mode, IOPL as given.
    .macro TO_V86 at, flags
    pushl $0                            # GS, FS
    pushl $0
    pushl $RESULTS >> 4                 # DS, ES
    pushl $RESULTS >> 4
    pushl $STACK - 0x8000 >> 4          # SS
    pushl $0x8000 - 0x100
    pushl $VM | \flags
    pushl $0
    pushl $\at
    xorl %edi, %edi
    iretl
    .endm

GUEST "calls/v86_pushf_popf_with_iopl_3", prot
GATE 0x50, 2f
    TO_V86 1f, IOPL3 | 2
    .code16
1:  pushfw
    popw %ax
    stosw
    pushw $0x30c3
    popfw
    pushfw
    popw %ax
    stosw
    int $0x50
    .code32
2:  movl 8(%esp), %eax
    outl %eax, $PRINT
    END

GUEST "calls/v86_iret_with_iopl_3", prot
GATE 0x50, 2f
    TO_V86 1f, IOPL3 | 2
    .code16
1:  pushfw
    pushw %cs
    pushw $3f
    iretw
3:  pushfw
    popw %ax
    stosw
    int $0x50
    .code32
2:  movl 8(%esp), %eax
    outl %eax, $PRINT
    END

# With IOPL 0 PUSHF is #GP: the monitor does it in the guest's place.
GUEST "calls/v86_pushf_with_iopl_0_is_emulated", prot
GATE 13, 2f
    TO_V86 1f, 2
    .code16
1:  pushfw
    nop
    int $0x50
    .code32
2:  movl 12(%esp), %eax
    outl %eax, $PRINT
    incl DATA
    cmpl $2, DATA
    je 3f
    incl 4(%esp)
    addl $4, %esp
    iretl
3:  END

GUEST "calls/v86_int_and_back", prot
GATE 0x50, 2f
    TO_V86 1f, IOPL3 | 2
    .code16
1:  int $0x50
    pushfw
    popw %ax
    stosw
    int $0x50
    .code32
2:  movl 8(%esp), %eax
    outl %eax, $PRINT
    incl %ebp
    jnp 3f
    iretl
3:  END

GUEST "calls/real_to_protected_and_back", real
    movl $GDT, DATA - RESULTS + 2
    movw $0xbf, DATA - RESULTS
    lgdtw DATA - RESULTS
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    pushfw
    popw %bx
    ljmp $CODE16, $1f
1:  pushfw
    popw %cx
    movl %cr0, %eax
    andb $0xfe, %al
    movl %eax, %cr0
    ljmp $0, $2f
2:  movw %bx, %ax
    stosw
    movw %cx, %ax
    stosw
    END
