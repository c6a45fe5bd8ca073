# User code and the kernel: exceptions with a change of stacks, and what the kernel does with the frame.

# Three guests for one exception of user code.
    .macro USER_FAULT what, vector, words, instruction:vararg

# The kernel logs the saved RFLAGS, and returns behind the instruction.
GUEST "user/\what/logs", user
GATE \vector, 1f
    \instruction
2:  pushfq
    popq %rax
    stosq
    END
1:  movq 8 * \words + 16(%rsp), %rax
    stosq
    addq $8 * \words, %rsp
    movq $2b, (%rsp)
    iretq

# A signal: the kernel copies the frame to the user's stack, and goes to the user's handler, which returns
# by a system call that loads what was copied.
GUEST "user/\what/signal", user
GATE \vector, 1f
GATE 0x80, 4f
    \instruction
2:  nop
    pushfq
    popq %rax
    stosq
    END
1:  addq $8 * \words, %rsp
    movq $2b, (%rsp)
    movq %rsp, %rsi
    movq 24(%rsp), %rdi
    subq $0x100, %rdi
    movl $5, %ecx
    rep movsq
    subq $40, %rdi
    movq %rdi, 24(%rsp)
    movq $3f, (%rsp)
    movq $2, 16(%rsp)
    movl $RESULTS, %edi
    iretq
3:  movq 16(%rsp), %rax
    stosq
    movb $'s', %al
    outb %al, $PRINT
    int $0x80
4:  movq 24(%rsp), %rsi
    movq %rdi, %rbx
    movq %rsp, %rdi
    movl $5, %ecx
    rep movsq
    movq %rbx, %rdi
    iretq

# The kernel prints in its handler, on an interrupt stack.
GUEST "user/\what/ist_prints", user
GATE \vector, 1f, ist=1
    \instruction
2:  nop
    pushfq
    popq %rax
    stosq
    END
1:  movl 8 * \words + 16(%rsp), %eax
    outl %eax, $PRINT
    addq $8 * \words, %rsp
    movq $2b, (%rsp)
    iretq
    .endm

USER_FAULT undefined_opcode, 6, 0, ud2
USER_FAULT divide_error, 0, 0, divl %ecx
USER_FAULT privileged_instruction, 13, 1, cli
USER_FAULT read_of_a_missing_page, 14, 1, movq MISSING, %rax
USER_FAULT write_to_a_kernel_page, 14, 1, movq %rax, SUPERVISOR
USER_FAULT int3, 3, 0, int3
USER_FAULT int_n, 0x50, 0, int $0x50

GUEST "user/alignment_check", user
GATE 13, 1f
GATE 17, 3f
    cli                                 # the kernel sets CR0.AM
2:  pushq $AC | 2
    popfq
    movl DATA + 1, %ebx
4:  pushq $2
    popfq
    END
1:  movq %cr0, %rax
    btsq $18, %rax
    movq %rax, %cr0
    addq $8, %rsp
    movq $2b, (%rsp)
    iretq
3:  movq 24(%rsp), %rax
    stosq
    addq $8, %rsp
    movq $4b, (%rsp)
    iretq

GUEST "user/page_fault_retried_then_popf", user
GATE 14, 1f
    movq MISSING, %rax
    pushfq
    popfq
    pushfq
    popq %rax
    stosq
    END
1:  movq $MISSING | PRESENT, MISSING_ENTRY
    addq $8, %rsp
    iretq

GUEST "user/page_fault_of_a_push", user
GATE 14, 1f
    movq $MISSING + 0x1000, %rsp
    pushq $0x55
    popq %rax
    stosq
    END
1:  movq $MISSING | PRESENT, MISSING_ENTRY
    addq $8, %rsp
    iretq

GUEST "user/page_fault_of_the_next_instruction", user
GATE 14, 1f
    movb $0x9c, MISSING - 1             # PUSHF at the end of a page
    movq $2f, %r8
    jmp MISSING - 1
2:  popq %rax
    stosq
    END
1:  movq (%rsp), %rax
    stosq
    movq $2b, 8(%rsp)
    addq $8, %rsp
    iretq

GUEST "user/kernel_and_back_ten_times", user
GATE 0x50, 1f
    movl $10, %r8d
2:  int $0x50
    decl %r8d
    jnz 2b
    END
1:  movq 16(%rsp), %rax
    stosq
    iretq

GUEST "user/compat_int_and_back", compat
GATE 0x50, 1f
    int $0x50
    pushfl
    popl %eax
    stosl
    END
    .code64
1:  movq 16(%rsp), %rax
    stosq
    iretq

GUEST "user/compat_fault_in_a_push", compat
GATE 14, 1f
    movl $MISSING + 0x1000, %esp
    pushl $5
    pushfl
    popl %eax
    stosl
    END
    .code64
1:  movq $MISSING | PRESENT, MISSING_ENTRY
    addq $8, %rsp
    iretq

GUEST "user/protected_int_and_back", prot3
GATE 0x50, 1f
    int $0x50
    pushfl
    popl %eax
    stosl
    END
1:  movl 8(%esp), %eax
    stosl
    iretl

GUEST "user/protected_fault_prints", paged3
GATE 14, 1f
    movl MISSING, %eax
2:  nop
    END
1:  movl 12(%esp), %eax
    outl %eax, $PRINT
    addl $4, %esp
    movl $2b, (%esp)
    iretl

# IRET itself faults: the frame that it was to load has a selector that is not present. (#NP, or #GP in
# QEMU's TCG.)
GUEST "user/iret_faults", long
GATE 11, 1f
GATE 13, 1f
    pushq $USER_DATA
    pushq $STACK - 0x100
    pushq $2
    pushq $ABSENT | 3
    pushq $2f
    iretq
2:  END
1:  movq 24(%rsp), %rax
    stosq
    addq $8, %rsp
    movq $3f, (%rsp)
    iretq
3:  pushfq
    popfq
    nop
    pushfq
    popq %rax
    stosq
    END

# The user's RFLAGS are what the kernel wrote into the frame.
GUEST "user/kernel_sets_flags_in_the_frame", user
GATE 0x50, 1f
    int $0x50
    pushfq
    popq %rax
    stosq
    END
1:  orq $0x8d5, 16(%rsp)
    iretq

GUEST "user/kernel_sets_tf_in_the_frame", user
GATE 0x50, 1f
GATE 1, 2f
    int $0x50
    nop
    END
1:  orq $TF, 16(%rsp)
    iretq
2:  incl DATA
    andq $~TF, 16(%rsp)
    iretq

GUEST "user/iret_to_user_code_with_tf", long
GATE 1, 2f
    RING3 1f, TF | 2
1:  nop
    END
2:  incl DATA
    movq 16(%rsp), %rax
    stosq
    andq $~TF, 16(%rsp)
    iretq
