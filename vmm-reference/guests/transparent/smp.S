# Two processors. Only vCPU 0's registers are compared: the other one is somewhere near its last instruction
# when the guest ends.

    .macro CPUS count
    RECORD R_CPUS, \count
    .endm

# The second processor begins at `at`, in real mode, with DS at DATA.
    .macro START_SECOND at
    APIC_ON
    movw $\at, DATA + 0x40
    movl $X2APIC_ICR, %ecx
    movl $1, %edx
    movl $0x4500, %eax
    wrmsr
    movl $0x4600 | IMAGE >> 12, %eax
    wrmsr
    .endm
    .macro AWAIT_WORD offset, value
9992:
    pause
    cmpw $\value, DATA + \offset
    jne 9992b
9993:
    WAIT 9992b, 9993b
    .endm

GUEST "smp/second_processor_starts", long
CPUS 2
    START_SECOND 1f
    AWAIT_WORD 0x50, 7
    END
    .code16
1:  movw $7, 0x50
    cli
    hlt

GUEST "smp/second_processor_pushes_its_flags", long
CPUS 2
    START_SECOND 1f
    AWAIT_WORD 0x50, 7
    END
    .code16
1:  movw %ds, %ax
    movw %ax, %ss
    movw $0x800, %sp
    pushfw
    popw 0x60
    movw $7, 0x50
    cli
    hlt

GUEST "smp/handshake", long
CPUS 2
    START_SECOND 1f
    .irp turn, 1, 2, 3, 4, 5
    movw $\turn, DATA + 0x52
    AWAIT_WORD 0x50, \turn
    .endr
    END
    .code16
1:  movw 0x52, %ax
    movw %ax, 0x50
    cmpw $5, %ax
    jne 1b
    cli
    hlt

GUEST "smp/locked_counters", long
CPUS 2
    START_SECOND 1f
    movl $50, %ecx
2:  lock incw DATA + 0x54
    loop 2b
    AWAIT_WORD 0x54, 100
    END
    .code16
1:  movw $50, %cx
2:  lock incw 0x54
    loop 2b
    cli
    hlt

GUEST "smp/code_changed_by_the_other_processor", long
CPUS 2
    START_SECOND 1f
    AWAIT_WORD 0x50, 1
    call 3f
    stosq
    movb $0x90, 3f
    END
3:  nop
    pushfq
    popq %rax
    xorl %ecx, %ecx
    ret
    .code16
1:  movw $0, %ax
    movw %ax, %es
    movb $0xf9, %es:3b          # stc
    movw $1, 0x50
    cli
    hlt

# INIT and another start-up IPI: it starts again.
GUEST "smp/second_processor_starts_twice", long
CPUS 2
    START_SECOND 1f
    AWAIT_WORD 0x50, 1
    START_SECOND 1f
    AWAIT_WORD 0x50, 2
    END
    .code16
1:  incw 0x50
    cli
    hlt

GUEST "smp/interrupt_from_the_other_processor", long
GATE 0x41, 2f, ist=2
CPUS 2
    START_SECOND 1f
    sti
    AWAIT 1
    cli
    FORGET_FRAME
    END
2:  COUNT_INTERRUPT
    .code16
1:  APIC_ON
    xorl %edx, %edx
    movl $X2APIC_ICR, %ecx
    movl $0x41, %eax
    wrmsr
    cli
    hlt

GUEST "smp/page_table_changed_by_the_other_processor", long
GATE 14, 2f
CPUS 2
    START_SECOND 1f
    movq MISSING, %rax
    stosq
    pushfq
    popfq
    END
2:  movw $1, DATA + 0x52
3:  pause
    cmpw $2, DATA + 0x52
    jne 3b
4:  addq $8, %rsp
    iretq
WAIT 3b, 4b
    .code16
1:  cmpw $1, 0x52
    jne 1b
    movw $PAGE_TABLE >> 4, %ax
    movw %ax, %es
    movl $MISSING | PRESENT, %es:MISSING_ENTRY - PAGE_TABLE
    movw $2, 0x52
    cli
    hlt
