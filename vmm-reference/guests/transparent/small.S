# Guests of those instructions that debug-stub's simulated vCPU has: they run on it, too. What they store shows
# in the stack.

    .macro SMALL name, mode
GUEST "small/\name", \mode
    .endm

SMALL pushf_and_pop, long
    pushfq
    popq %rax
    pushfq
    nop
    popq %rax
    END

SMALL pushf_and_pop_in_16_bit, real
    pushfw
    popw %ax
    pushfw
    nop
    popw %ax
    END

SMALL pushf_and_popf, long
    pushfq
    popfq
    nop
    pushfq
    popq %rax
    END

SMALL pushf_and_popf_in_16_bit, real
    pushfw
    popfw
    nop
    pushfw
    popw %ax
    END

SMALL int_n, long
GATE 0x50, 1f
    int $0x50
    nop
    END
1:  nop
    iretq

SMALL int_n_in_16_bit, real
GATE 0x50, 1f
    int $0x50
    incw %bx
    END
1:  incw %ax
    iretw

SMALL int_n_then_pushf_and_popf, long
GATE 0x50, 1f
    int $0x50
    pushfq
    popfq
    nop
    END
1:  nop
    iretq

SMALL int_n_in_a_handler, long
GATE 0x50, 1f
GATE 0x51, 2f
    int $0x50
    END
1:  int $0x51
    nop
    iretq
2:  pushfq
    popq %rax
    iretq

SMALL int3, long
GATE 3, 1f
    nop
    int3
    nop
    END
1:  nop
    iretq

SMALL handler_prints, long
GATE 0x50, 1f
    int $0x50
    nop
    END
1:  outb %al, $PRINT
    iretq

SMALL undefined_opcode_ends_in_its_handler, long
GATE 6, 1f
    ud2
1:  pushfq
    popq %rax
    END

SMALL ports, long
    inb $NEXT, %al
    outb %al, $PRINT
    movb %al, (%rdi)
    inb $NEXT, %al
    outb %al, $PRINT
    END

SMALL store_and_load, long
    movb %al, (%rdi)
    pushfq
    movb (%rdi), %al
    popq %rax
    END

SMALL sti_and_cli, long
    sti
    pushfq
    popq %rax
    cli
    pushfq
    popq %rax
    END
