# Instructions that store or load RFLAGS: PUSHF, POPF, IRET, LAHF, SAHF, and the stack around them.

GUEST "flags/pushf_64", long
    pushfq
    popq %rax
    stosq
    pushfw
    popw %ax
    stosw
    END

GUEST "flags/pushf_32", prot
    pushfl
    popl %eax
    stosl
    pushfw
    popw %ax
    stosw
    END

GUEST "flags/pushf_16", real
    pushfw
    popw %ax
    stosw
    pushfl
    popl %eax
    stosl
    END

# The image is read where it is, long after it was pushed.
GUEST "flags/pushed_image_stays_in_memory", long
    pushfq
    pushfw
    pushfq
    addq $18, %rsp
    movq -8(%rsp), %rax
    stosq
    END

GUEST "flags/pushf_popf", long
    stc
    pushfq
    popfq
    pushfq
    popfq
    nop
    pushfq
    popq %rax
    stosq
    END

GUEST "flags/popf_of_a_constant", long
    pushq $0xed7
    popfq
    pushfq
    popq %rax
    stosq
    pushq $2
    popfq
    END

GUEST "flags/popf_32_of_a_constant", prot
    pushl $0xcd7
    popfl
    pushfl
    popl %eax
    stosl
    pushl $2
    popfl
    END

GUEST "flags/popf_16_keeps_the_upper_half", long
    pushq $AC
    popfq
    pushw $0x8d5
    popfw
    pushfq
    popq %rax
    stosq
    pushq $2
    popfq
    END

GUEST "flags/local_irq_save_and_restore", long
    pushfq
    popq %rbx
    cli
    movl $7, DATA
    pushq %rbx
    popfq
    pushfq
    popq %rax
    stosq
    END

GUEST "flags/lahf_sahf", long
    stc
    lahf
    movb %ah, %al
    stosb
    movb $0xd7, %ah
    sahf
    pushfq
    popq %rax
    stosq
    END

GUEST "flags/iretq_to_the_next_instruction", long
    movq %rsp, %rbx
    pushq $KERNEL_DATA
    pushq %rbx
    pushfq
    pushq $CODE64
    pushq $1f
    iretq
1:  pushfq
    popq %rax
    stosq
    END

GUEST "flags/iretd_to_the_next_instruction", prot
    pushfl
    pushl $CODE32
    pushl $1f
    iretl
1:  pushfl
    popl %eax
    stosl
    END

GUEST "flags/iretw_in_real_mode", real
    pushfw
    pushw %cs
    pushw $1f
    iretw
1:  pushfw
    popw %ax
    stosw
    END

GUEST "flags/iretq_then_pushf_popf", long
    movq %rsp, %rbx
    pushq $KERNEL_DATA
    pushq %rbx
    pushq $0x47
    pushq $CODE64
    pushq $1f
    iretq
1:  pushfq
    popfq
    nop
    pushfq
    popq %rax
    stosq
    END

GUEST "flags/pushf_across_two_pages", long
    movq $DATA + 0x1004, %rsp
    pushfq
    movq (%rsp), %rax
    leaq STACK, %rsp
    stosq
    END

# The stack is full: PUSHF faults, and is done again when the handler has mapped the page.
GUEST "flags/pushf_onto_a_missing_page", long
GATE 14, 1f, ist=1
    movq $MISSING + 0x1000, %rsp
    pushfq
    movq (%rsp), %rax
    leaq STACK, %rsp
    stosq
    pushfq
    popfq
    END
1:  movq $MISSING | PRESENT, MISSING_ENTRY
    addq $8, %rsp
    iretq

GUEST "flags/popf_from_a_missing_page", long
GATE 14, 1f, ist=1
    movq $MISSING + 0x10, %rsp
    popfq
    leaq STACK, %rsp
    pushfq
    popq %rax
    stosq
    END
1:  movq $MISSING | PRESENT, MISSING_ENTRY
    addq $8, %rsp
    iretq

GUEST "flags/pop_into_memory_beside_pushf", long
    pushfq
    popq DATA
    pushfq
    popq 8(%rsi)
    movq DATA, %rax
    stosq
    END

GUEST "flags/mov_ss_then_pushf", long
    movl $KERNEL_DATA, %eax
    movl %eax, %ss
    pushfq
    popq %rax
    stosq
    END

GUEST "flags/mov_ss_twice_then_pushf", long
    movl $KERNEL_DATA, %eax
    movl %eax, %ss
    movl %eax, %ss
    pushfq
    popq %rax
    stosq
    END

GUEST "flags/three_times_mov_ss_then_pushf", long
    movl $KERNEL_DATA, %eax
    movl %eax, %ss
    movl %eax, %ss
    movl %eax, %ss
    pushfq
    popq %rax
    stosq
    END

GUEST "flags/pop_ss_then_pushf", prot
    pushl $KERNEL_DATA
    popl %ss
    pushfl
    popl %eax
    stosl
    END

GUEST "flags/pop_ss_then_popf", real
    pushw $0x246
    pushw %ss
    popw %ss
    popfw
    pushfw
    popw %ax
    stosw
    END

GUEST "flags/mov_ss_then_a_fault", long
GATE 6, 1f
    movl $KERNEL_DATA, %eax
    movl %eax, %ss
    ud2
2:  END
1:  movq 16(%rsp), %rax
    stosq
    movq $2b, (%rsp)
    iretq

GUEST "flags/mov_ss_then_iret", long
    movq %rsp, %rbx
    pushq $KERNEL_DATA
    pushq %rbx
    pushfq
    pushq $CODE64
    pushq $1f
    movl $KERNEL_DATA, %eax
    movl %eax, %ss
    iretq
1:  pushfq
    popq %rax
    stosq
    END

GUEST "flags/sti_then_pushf", long
    sti
    pushfq
    popq %rax
    stosq
    cli
    pushfq
    popq %rax
    stosq
    END

GUEST "flags/user_popf_changes_neither_if_nor_iopl", user
    pushq $0x3ed7
    popfq
    pushfq
    popq %rax
    stosq
    END

GUEST "flags/user_pushf_32", compat
    pushfl
    popl %eax
    stosl
    pushfw
    popw %ax
    stosw
    END

GUEST "flags/user_iret_to_the_next_instruction", user
    movq %rsp, %rbx
    pushq $USER_DATA
    pushq %rbx
    pushfq
    pushq $USER_CODE64
    pushq $1f
    iretq
1:  pushfq
    popq %rax
    stosq
    END
