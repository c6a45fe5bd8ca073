# Exceptions raised by the stepped instruction itself, without a change of privilege.
#
# The handler sees the RFLAGS that the processor saved: it reads them, copies them, prints them, or leaves
# them behind. None of them may have the debugger's TF.

# Six guests for one exception: `words` is 1 if it has an error code.
    .macro FAULT what, vector, words, instruction:vararg

# The handler logs the saved RFLAGS, and goes on behind the instruction.
GUEST "fault/\what/logs", long
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

# The handler copies the whole frame, as a signal frame; the guest returns by the copy later.
GUEST "fault/\what/copies", long
GATE \vector, 1f
    \instruction
2:  nop
    movq $3f, DATA
    movq DATA + 24, %rsp
    pushq DATA + 32
    pushq DATA + 24
    pushq DATA + 16
    pushq DATA + 8
    pushq DATA
    iretq
3:  nop
    END
1:  xchgq %rsi, %rdi
    leaq 8 * \words(%rsp), %rsi
    movl $5, %ecx
    rep movsq
    leaq RESULTS, %rdi
    addq $8 * \words, %rsp
    movq $2b, (%rsp)
    iretq

# The handler goes on elsewhere without IRET, and leaves the frame behind.
GUEST "fault/\what/leaves", long
GATE \vector, 1f
    \instruction
    END
1:  movq $STACK, %rsp
    nop
    pushfq
    popfq
    nop
    pushfq
    popq %rax
    stosq
    END

# The handler prints the saved RFLAGS: an exit in the handler ends the step on some hosts.
GUEST "fault/\what/prints", long
GATE \vector, 1f
    \instruction
2:  nop
    END
1:  movl 8 * \words + 16(%rsp), %eax
    outl %eax, $PRINT
    addq $8 * \words, %rsp
    movq $2b, (%rsp)
    iretq

# What follows the handler's IRET stores RFLAGS and loads them again.
GUEST "fault/\what/not_retried_then_popf", long
GATE \vector, 1f
    \instruction
2:  pushfq
    popfq
    nop
    nop
    pushfq
    popq %rax
    stosq
    END
1:  addq $8 * \words, %rsp
    movq $2b, (%rsp)
    iretq

# On an interrupt stack, with an exit in the handler.
GUEST "fault/\what/ist_prints", long
GATE \vector, 1f, ist=1
    \instruction
2:  nop
    pushfq
    popq %rax
    stosq
    END
1:  movb $'!', %al
    outb %al, $PRINT
    movq 8 * \words + 16(%rsp), %rax
    stosq
    addq $8 * \words, %rsp
    movq $2b, (%rsp)
    iretq
    .endm

FAULT undefined_opcode, 6, 0, ud2
FAULT divide_error, 0, 0, divl %ecx
FAULT not_canonical, 13, 1, movq (%r15), %rax
FAULT stack_fault, 12, 1, movw %r14w, %ss
FAULT absent_segment, 11, 1, movw %r14w, %ds
FAULT read_of_a_missing_page, 14, 1, movq MISSING, %rax
FAULT write_to_a_read_only_page, 14, 1, movq %rax, READONLY
FAULT call_into_a_missing_page, 14, 1, call MISSING
FAULT int3, 3, 0, int3
FAULT int_n, 0x50, 0, int $0x50
