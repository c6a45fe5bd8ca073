# What random sequences of instructions run in: tests/transparent/random.rs writes them to RANDOM_CODE, in
# slots of 32 bytes. A handler logs its vector and the saved RFLAGS, and goes on with the next slot.

    .set RANDOM_CODE, 0x20000
    .set LOG_AT, DATA + 0xf00           # where the next entry goes
    .set TRAPS, DATA + 0xf08            # how many of its own single steps the guest has seen
    .set FAULTS, DATA + 0xf10           # how many page faults

# RAX and RBX are saved; the frame is at 24(%rsp) then.
    .macro LOG_FRAME vector
    pushq %rax
    pushq %rbx
    movq LOG_AT, %rbx
    movq 32(%rsp), %rax
    movq $\vector, (%rbx)
    movq %rax, 8(%rbx)
    addq $16, LOG_AT
    .endm
    .macro NEXT_SLOT
    orq $31, 16(%rsp)
    incq 16(%rsp)
    .endm
    .macro RETURN
    popq %rbx
    popq %rax
    iretq
    .endm

    .code64
    .irp vector, 0, 3, 4, 6, 7, 0x50
random_\vector:
    LOG_FRAME \vector
    NEXT_SLOT
    RETURN
    .endr
    .irp vector, 10, 11, 12, 13, 17
random_\vector:
    addq $8, %rsp
    LOG_FRAME \vector
    NEXT_SLOT
    RETURN
    .endr

# The guest's own single steps end after six.
random_1:
    LOG_FRAME 1
    incq TRAPS
    testq $7, TRAPS
    jnz 1f
    andq $~TF, 32(%rsp)
1:  RETURN

# Every second page fault maps the missing page; the others go on with the next slot.
random_14:
    addq $8, %rsp
    LOG_FRAME 14
    incq FAULTS
    testq $1, FAULTS
    jnz 1f
    cmpq $0, MISSING_ENTRY
    jne 1f
    movq $MISSING | PRESENT, MISSING_ENTRY
    RETURN
1:  NEXT_SLOT
    RETURN

    .macro RANDOM name, mode
GUEST "random/\name", \mode
    .irp vector, 0, 1, 3, 4, 6, 7, 10, 11, 12, 13, 14, 17, 0x50
GATE \vector, random_\vector, ist=2
    .endr
    movq $RESULTS, LOG_AT
    jmp RANDOM_CODE
    .endm
RANDOM kernel, long
RANDOM user, user
