# Guests that use the debug features themselves: TF, DR0-DR7, INT1 and INT3.

# The handler of a #DB or #BP that counts, and logs DR6.
    .macro COUNT_TRAPS
    incl DATA
    pushq %rax
    movq %dr6, %rax
    stosq
    xorl %eax, %eax
    movq %rax, %dr6
    popq %rax
    iretq
    .endm

GUEST "debug/own_single_step", long
GATE 1, 1f
    pushq $TF | 2
    popfq
    nop
    incl %ebx
    nop
    pushq $2
    popfq
    nop
    END
1:  COUNT_TRAPS

GUEST "debug/own_single_step_begun_by_iret", long
GATE 1, 1f
    movq %rsp, %rbx
    pushq $KERNEL_DATA
    pushq %rbx
    pushq $TF | 2
    pushq $CODE64
    pushq $2f
    iretq
2:  nop
    incl %ecx
    pushq $2
    popfq
    END
1:  COUNT_TRAPS

GUEST "debug/own_single_step_ended_by_its_handler", long
GATE 1, 1f
    pushq $TF | 2
    popfq
    incl %ebx
    incl %ecx
    incl %edx
    END
1:  incl DATA
    cmpl $2, DATA
    jb 2f
    andq $~TF, 16(%rsp)
2:  iretq

GUEST "debug/own_single_step_sees_its_own_tf", long
GATE 1, 1f
    pushq $TF | 2
    popfq
    pushfq
    popq %rax
    stosq
    pushq $2
    popfq
    END
1:  COUNT_TRAPS

GUEST "debug/own_single_step_over_a_fault", long
GATE 1, 1f
GATE 6, 3f
    pushq $TF | 2
    popfq
    ud2
2:  nop
    pushq $2
    popfq
    END
1:  COUNT_TRAPS
3:  movq 16(%rsp), %rax
    stosq
    movq $2b, (%rsp)
    iretq

GUEST "debug/own_single_step_over_int_n", long
GATE 1, 1f
GATE 0x50, 3f
    pushq $TF | 2
    popfq
    int $0x50
    nop
    pushq $2
    popfq
    END
1:  COUNT_TRAPS
3:  movq 16(%rsp), %rax
    stosq
    iretq

GUEST "debug/own_single_step_over_a_device", long
GATE 1, 1f
    pushq $TF | 2
    popfq
    inb $NEXT, %al
    outb %al, $PRINT
    movl DEVICE, %ebx
    movl %ebx, DEVICE
    pushq $2
    popfq
    END
1:  COUNT_TRAPS

GUEST "debug/own_single_step_over_rep_movs", long
GATE 1, 1f
    movl $3, %ecx
    movq $DATA + 0x100, %rsi
    movq $DATA + 0x200, %rdi
    pushq $TF | 2
    popfq
    rep movsb
    pushq $2
    popfq
    END
1:  incl DATA
    iretq

GUEST "debug/own_single_step_over_mov_ss", long
GATE 1, 1f
    movl $KERNEL_DATA, %ebx
    pushq $TF | 2
    popfq
    movl %ebx, %ss
    nop
    nop
    pushq $2
    popfq
    END
1:  COUNT_TRAPS

GUEST "debug/own_single_step_over_syscall_with_tf_in_fmask", long
GATE 1, 1f
    SET_MSR LSTAR, 2f
    SET_MSR_HIGH STAR, 0x180008
    SET_MSR FMASK, TF
    pushq $TF | 2
    popfq
    syscall
2:  nop
    movq %r11, %rax
    stosq
    END
1:  COUNT_TRAPS

GUEST "debug/own_single_step_over_syscall_without_tf_in_fmask", long
GATE 1, 1f
    SET_MSR LSTAR, 2f
    SET_MSR_HIGH STAR, 0x180008
    SET_MSR FMASK, IF
    pushq $TF | 2
    popfq
    syscall
2:  nop
    pushq $2
    popfq
    movq %r11, %rax
    stosq
    END
1:  COUNT_TRAPS

GUEST "debug/own_single_step_in_32_bit", prot
GATE 1, 1f
    pushl $TF | 2
    popfl
    nop
    incl %ebx
    pushl $2
    popfl
    END
1:  incl DATA
    pushl %eax
    movl 12(%esp), %eax
    stosl
    popl %eax
    iretl

GUEST "debug/own_single_step_in_real_mode", real
GATE 1, 1f
    pushw $TF | 2
    popfw
    nop
    incw %bx
    pushw $2
    popfw
    END
1:  incw (%si)
    iretw

GUEST "debug/own_single_step_in_user_mode", user
GATE 1, 1f
    pushq $TF | 2
    popfq
    nop
    incl %ebx
    pushq $2
    popfq
    END
1:  COUNT_TRAPS

# What is left of the handler's frame is not the debugger's either.
GUEST "debug/own_execute_breakpoint", long
GATE 1, 1f
    movl $2f, %eax
    movq %rax, %dr0
    movl $0x402, %eax
    movq %rax, %dr7
    nop
2:  incl %ebx
    xorl %eax, %eax
    movq %rax, %dr7
    END
1:  incl DATA
    movq %dr6, %rax
    stosq
    orq $RF, 16(%rsp)
    iretq

GUEST "debug/own_execute_breakpoint_in_a_loop", long
GATE 1, 1f
    movl $2f, %eax
    movq %rax, %dr1
    movl $0x408, %eax
    movq %rax, %dr7
    movl $3, %ecx
2:  incl %ebx
    loop 2b
    xorl %eax, %eax
    movq %rax, %dr7
    END
1:  incl DATA
    orq $RF, 16(%rsp)
    iretq

GUEST "debug/own_execute_breakpoint_at_a_branch_target", long
GATE 1, 1f
    movl $2f, %eax
    movq %rax, %dr3
    movl $0x480, %eax
    movq %rax, %dr7
    jmp 2f
    hlt
2:  pushfq
    popq %rax
    stosq
    xorl %eax, %eax
    movq %rax, %dr7
    END
1:  incl DATA
    orq $RF, 16(%rsp)
    iretq

GUEST "debug/own_watchpoint_of_writes", long
GATE 1, 1f
    movl $DATA + 0x100, %eax
    movq %rax, %dr0
    movl $0xd0402, %eax
    movq %rax, %dr7
    movl DATA + 0x100, %ebx
    movl %ebx, DATA + 0x100
    nop
    xorl %eax, %eax
    movq %rax, %dr7
    END
1:  COUNT_TRAPS

GUEST "debug/own_watchpoint_of_accesses", long
GATE 1, 1f
    movl $DATA + 0x100, %eax
    movq %rax, %dr2
    movl $0xf000420, %eax
    movq %rax, %dr7
    movl DATA + 0x100, %ebx
    movl %ebx, DATA + 0x100
    pushq DATA + 0x100
    popq %rbx
    xorl %eax, %eax
    movq %rax, %dr7
    END
1:  COUNT_TRAPS

GUEST "debug/own_watchpoint_is_not_enabled", long
    movl $DATA + 0x100, %eax
    movq %rax, %dr0
    movl $0xd0400, %eax
    movq %rax, %dr7
    movl %ebx, DATA + 0x100
    movl $1f, %eax
    movq %rax, %dr1
1:  nop
    movq %dr6, %rax
    stosq
    movq %dr7, %rax
    stosq
    END

GUEST "debug/own_breakpoint_and_own_step", long
GATE 1, 1f
    movl $2f, %eax
    movq %rax, %dr0
    movl $0x402, %eax
    movq %rax, %dr7
    pushq $TF | 2
    popfq
    nop
2:  nop
    pushq $2
    popfq
    xorl %eax, %eax
    movq %rax, %dr7
    END
1:  incl DATA
    movq %dr6, %rax
    stosq
    xorl %eax, %eax
    movq %rax, %dr6
    orq $RF, 16(%rsp)
    iretq

GUEST "debug/general_detect", long
GATE 1, 1f
    movl $0x2400, %eax
    movq %rax, %dr7
    movq %dr0, %rbx
2:  movl $0x400, %eax
    movq %rax, %dr7
    END
1:  movq %dr6, %rax
    stosq
    movq $2b, (%rsp)
    iretq

GUEST "debug/debug_registers_read_back", long
    movl $0x1234, %eax
    .irp n, 0, 1, 2, 3
    movq %rax, %dr\n
    incl %eax
    .endr
    .irp n, 0, 1, 2, 3, 6, 7
    movq %dr\n, %rax
    stosq
    .endr
    END

GUEST "debug/dr6_is_what_the_guest_wrote", long
    movq %dr6, %rax
    stosq
    movl $0xffff4ff1, %eax
    movq %rax, %dr6
    nop
    pushfq
    popq %rbx
    movq %dr6, %rax
    stosq
    END

GUEST "debug/dr4_without_de_is_dr6", prot
    movl %dr6, %eax
    stosl
    .byte 0x0f, 0x21, 0xe0              # mov %dr4, %eax
    stosl
    END

GUEST "debug/dr4_with_de_is_undefined", long
GATE 6, 1f
    movq %cr4, %rax
    orq $8, %rax
    movq %rax, %cr4
    .byte 0x0f, 0x21, 0xe0              # mov %dr4, %rax
2:  END
1:  movq 16(%rsp), %rax
    stosq
    movq $2b, (%rsp)
    iretq

GUEST "debug/int1", long
GATE 1, 1f
    nop
    .byte 0xf1
    nop
    END
1:  incl DATA
    movq 16(%rsp), %rax
    stosq
    iretq

GUEST "debug/int1_in_user_mode", user
GATE 1, 1f
    nop
    .byte 0xf1
    nop
    END
1:  incl DATA
    movq 16(%rsp), %rax
    stosq
    iretq

GUEST "debug/int_1_by_number", long
GATE 1, 1f
    int $1
    nop
    END
1:  movq 16(%rsp), %rax
    stosq
    iretq

GUEST "debug/own_int3_twice", long
GATE 3, 1f
    int3
    int3
    nop
    END
1:  incl DATA
    movq 16(%rsp), %rax
    stosq
    iretq

GUEST "debug/own_int3_in_user_mode", user
GATE 3, 1f
    nop
    int3
    nop
    END
1:  incl DATA
    movq 16(%rsp), %rax
    stosq
    iretq

GUEST "debug/own_int3_in_real_mode", real
GATE 3, 1f
    nop
    int3
    nop
    END
1:  incw (%si)
    pushw %bp
    movw %sp, %bp
    movw 6(%bp), %ax
    popw %bp
    stosw
    iretw
