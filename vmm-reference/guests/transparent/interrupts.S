# Interrupts and NMIs that become pending at a chosen instruction: the test device raises them, or the guest
# sends them to itself. No timer runs.

# The interrupt is pending while IF is clear; `instruction` lets it in.
    .macro PENDING name, instruction:vararg
GUEST "interrupts/\name", long
GATE 0x41, 1f, ist=2
    APIC_ON
    RAISE_VECTOR 0x41
    nop
    \instruction
    nop
    AWAIT 1
    FORGET_FRAME
    cli
    pushfq
    popq %rax
    stosq
    END
1:  COUNT_INTERRUPT
    .endm

PENDING pending_at_sti, sti

    .macro POPF_IF
    pushq $IF | 2
    popfq
    .endm
PENDING pending_at_popf, POPF_IF

    .macro IRET_IF
    movq %rsp, %rbx
    pushq $KERNEL_DATA
    pushq %rbx
    pushq $IF | 2
    pushq $CODE64
    pushq $9f
    iretq
9:
    .endm
PENDING pending_at_iret, IRET_IF

    .macro STI_MOV_SS
    movl $KERNEL_DATA, %ebx
    sti
    movl %ebx, %ss
    nop
    .endm
PENDING pending_at_sti_and_mov_ss, STI_MOV_SS

    .macro STI_PUSHF
    sti
    pushfq
    popq %rbx
    .endm
PENDING pending_at_sti_then_pushf, STI_PUSHF

    .macro STI_CLI_STI
    sti
    cli
    nop
    sti
    .endm
PENDING pending_at_sti_cli, STI_CLI_STI

    .macro STI_OUT
    sti
    outb %al, $PRINT
    .endm
PENDING pending_at_sti_then_out, STI_OUT

    .macro STI_READ_DEVICE
    sti
    movl DEVICE, %ebx
    .endm
PENDING pending_at_sti_then_a_device_read, STI_READ_DEVICE

    .macro STI_REP_MOVS
    movl $4, %ecx
    pushq %rdi
    leaq DATA + 0x200, %rdi
    leaq DATA + 0x100, %rsi
    sti
    rep movsb
    popq %rdi
    .endm
PENDING pending_at_sti_then_rep_movs, STI_REP_MOVS

GUEST "interrupts/pending_at_sti_then_hlt", long
GATE 0x41, 1f, ist=2
    APIC_ON
    RAISE_VECTOR 0x41
    sti
2:  hlt
3:  cli
    FORGET_FRAME
    END
WAIT 2b, 3b
1:  COUNT_INTERRUPT

# An idle loop: it looks for work with IF clear.
GUEST "interrupts/idle_loop", long
GATE 0x41, 1f, ist=2
    APIC_ON
    RAISE_VECTOR 0x41
2:  cmpl $0, DATA
    jne 3f
    sti
4:  hlt
5:  cli
    jmp 2b
3:  FORGET_FRAME
    END
WAIT 4b, 5b
1:  COUNT_INTERRUPT

    .macro BY_PRIORITY name, set, lower:vararg
GUEST "interrupts/\name", long
GATE 0x41, 1f, ist=2
    APIC_ON
    \set
    RAISE_VECTOR 0x41
    sti
    nop
    nop
    \lower
    nop
    AWAIT 1
    cli
    FORGET_FRAME
    END
1:  COUNT_INTERRUPT
    .endm
    .macro CR8 value
    movl $\value, %ebx
    movq %rbx, %cr8
    .endm
    .macro RAISE_CR8
    CR8 8
    .endm
    .macro LOWER_CR8
    CR8 2
    .endm
    .macro RAISE_TPR
    SET_MSR X2APIC_TPR, 0x80
    .endm
    .macro LOWER_TPR
    SET_MSR X2APIC_TPR, 0x20
    .endm
BY_PRIORITY held_back_by_cr8, RAISE_CR8, LOWER_CR8
BY_PRIORITY held_back_by_the_tpr, RAISE_TPR, LOWER_TPR
BY_PRIORITY held_back_by_the_tpr_and_let_in_by_cr8, RAISE_TPR, LOWER_CR8

GUEST "interrupts/cr8_is_the_tpr", long
    APIC_ON
    CR8 5
    movl $X2APIC_TPR, %ecx
    rdmsr
    stosq
    SET_MSR X2APIC_TPR, 0x70
    movq %cr8, %rax
    stosq
    CR8 0
    END

GUEST "interrupts/self_ipi", long
GATE 0x41, 1f, ist=2
    APIC_ON
    sti
    SET_MSR X2APIC_SELF_IPI, 0x41
    nop
    AWAIT 1
    cli
    FORGET_FRAME
    END
1:  COUNT_INTERRUPT

GUEST "interrupts/self_ipi_by_icr", long
GATE 0x41, 1f, ist=2
    APIC_ON
    SET_MSR X2APIC_ICR, 0x44041
    sti
    nop
    AWAIT 1
    cli
    FORGET_FRAME
    END
1:  COUNT_INTERRUPT

GUEST "interrupts/ten_self_ipis", long
GATE 0x41, 1f, ist=2
    APIC_ON
    movl $1, %ebx
2:  SET_MSR X2APIC_SELF_IPI, 0x41
    sti
3:  pause
    cmpl %ebx, DATA
    jne 3b
4:  cli
    incl %ebx
    cmpl $11, %ebx
    jne 2b
    FORGET_FRAME
    END
WAIT 3b, 4b
1:  COUNT_INTERRUPT

# The higher vector enters first; both handlers log their order.
GUEST "interrupts/two_vectors_by_priority", long
GATE 0x41, 1f, ist=2
GATE 0x61, 2f, ist=2
    APIC_ON
    RAISE_VECTOR 0x41
    RAISE_VECTOR 0x61
    sti
    nop
    AWAIT 2
    cli
    FORGET_FRAME
    END
2:  movq $0x61, %rbx
    movl %ebx, DATA + 16
    COUNT_INTERRUPT
1:  movl DATA + 16, %ebx
    movl %ebx, DATA + 20
    COUNT_INTERRUPT

GUEST "interrupts/handler_copies_the_frame", long
GATE 0x41, 1f, ist=2
    APIC_ON
    RAISE_VECTOR 0x41
    sti
    nop
    AWAIT 1
    cli
    FORGET_FRAME
    END
1:  movq 16(%rsp), %rbx
    andl $TF | IF, %ebx
    movq %rbx, DATA + 0x10
    COUNT_INTERRUPT

GUEST "interrupts/handler_prints", long
GATE 0x41, 1f, ist=2
    APIC_ON
    RAISE_VECTOR 0x41
    sti
    nop
    AWAIT 1
    cli
    FORGET_FRAME
    END
1:  movq 16(%rsp), %rbx
    andl $TF | IF, %ebx
    pushq %rax
    movl %ebx, %eax
    outl %eax, $PRINT
    popq %rax
    COUNT_INTERRUPT

# It enters user code, and the handler returns there.
GUEST "interrupts/in_user_code", long
GATE 0x41, 1f, ist=2
GATE 0x50, 5f
    APIC_ON
    RAISE_VECTOR 0x41
    RING3 2f, IF | 2
2:  nop
    AWAIT 1
    int $0x50
1:  COUNT_INTERRUPT
5:  FORGET_FRAME
    END

# A fault while an interrupt is pending: its handler runs with IF clear.
GUEST "interrupts/pending_during_a_fault", long
GATE 0x41, 1f, ist=2
GATE 6, 2f
    APIC_ON
    RAISE_VECTOR 0x41
    ud2
3:  sti
    nop
    AWAIT 1
    cli
    FORGET_FRAME
    END
1:  COUNT_INTERRUPT
2:  movq 16(%rsp), %rax
    stosq
    movq $3b, (%rsp)
    iretq

GUEST "interrupts/fault_behind_sti", long
GATE 0x41, 1f, ist=2
GATE 6, 2f
    APIC_ON
    RAISE_VECTOR 0x41
    sti
    ud2
3:  nop
    AWAIT 1
    cli
    FORGET_FRAME
    END
1:  COUNT_INTERRUPT
2:  orl $1, DATA + 0x20
    movq $3b, (%rsp)
    andq $~RF, 16(%rsp)
    iretq

    .macro COUNT_NMI
    incl DATA
    pushq %rax
    movq 24(%rsp), %rax
    andl $TF, %eax
    orl %eax, DATA + 8
    popq %rax
    iretq
    .endm

GUEST "interrupts/nmi", long
GATE 2, 1f, ist=2
    APIC_ON
    outb %al, $RAISE_NMI
    nop
    AWAIT 1
    FORGET_FRAME
    pushfq
    popq %rax
    stosq
    END
1:  COUNT_NMI

# The second is held back until the first one's IRET.
GUEST "interrupts/nmi_in_an_nmi_handler", long
GATE 2, 1f, ist=2
    APIC_ON
    outb %al, $RAISE_NMI
    nop
    AWAIT 2
    FORGET_FRAME
    END
1:  cmpl $0, DATA
    jne 2f
    outb %al, $RAISE_NMI
    nop
    nop
2:  COUNT_NMI

GUEST "interrupts/nmi_behind_mov_ss", long
GATE 2, 1f, ist=2
    APIC_ON
    movl $KERNEL_DATA, %ebx
    outb %al, $RAISE_NMI
    movl %ebx, %ss
    nop
    AWAIT 1
    FORGET_FRAME
    END
1:  COUNT_NMI

GUEST "interrupts/nmi_and_interrupt", long
GATE 2, 1f, ist=1                       # it may enter the interrupt's handler
GATE 0x41, 2f, ist=2
    APIC_ON
    RAISE_VECTOR 0x41
    outb %al, $RAISE_NMI
    sti
    nop
    AWAIT 2
    cli
    FORGET_FRAME
    END
1:  COUNT_NMI
2:  COUNT_INTERRUPT

# IRET of a fault's handler inside an NMI's ends the NMI's blocking.
GUEST "interrupts/fault_in_an_nmi_handler", long
GATE 2, 1f, ist=2
GATE 6, 2f
    APIC_ON
    outb %al, $RAISE_NMI
    nop
    AWAIT 1
    FORGET_FRAME
    END
1:  ud2
3:  COUNT_NMI
2:  movq 16(%rsp), %rbx
    andl $TF, %ebx
    movl %ebx, DATA + 0x10
    movq $3b, (%rsp)
    iretq

# Interrupts of the 8259A pair, whose vectors no local APIC knows.
    .macro EXT_INT name, vector, line
GUEST "interrupts/\name", long
GATE \vector, 1f, ist=2
    APIC_ON
    PIC_ON
    movb $\line, %al
    outb %al, $RAISE_LINE
    sti
    nop
    AWAIT 1
    FORGET_FRAME
    cli
    END
1:  COUNT_EXT_INT
    .endm
EXT_INT ext_int, 0x51, 1
EXT_INT ext_int_of_the_slave, 0x5a, 10

GUEST "interrupts/ext_int_and_interrupt", long
GATE 0x41, 1f, ist=2
GATE 0x51, 2f, ist=2
    APIC_ON
    PIC_ON
    RAISE_VECTOR 0x41
    movb $1, %al
    outb %al, $RAISE_LINE
    sti
    nop
    AWAIT 2
    FORGET_FRAME
    cli
    END
1:  COUNT_INTERRUPT
2:  COUNT_EXT_INT

GUEST "interrupts/in_real_mode", real
GATE 0x41, 1f
    APIC_ON
    RAISE_VECTOR 0x41
    sti
    nop
2:  cmpw $1, (%si)
    jne 2b
3:  cli
    movw $0, -2(%bp)
    movw $0, -4(%bp)
    movw $0, -6(%bp)
    END
WAIT 2b, 3b
1:  movw %sp, %bp
    addw $6, %bp
    incw (%si)
    pushl %eax
    SET_MSR X2APIC_EOI, 0
    popl %eax
    iretw

GUEST "interrupts/in_protected_mode", prot
GATE 0x41, 1f
    APIC_ON
    RAISE_VECTOR 0x41
    sti
    nop
2:  cmpl $1, DATA
    jne 2b
3:  cli
    movl $0, STACK - 4
    movl $0, STACK - 8
    movl $0, STACK - 12
    END
WAIT 2b, 3b
1:  incl DATA
    movl 8(%esp), %eax
    andl $TF | IF, %eax
    movl %eax, DATA + 8
    SET_MSR X2APIC_EOI, 0
    iretl
