# Privileged and special instructions: control registers, MSRs, CPUID, time, descriptor tables, transactions,
# MONITOR and MWAIT, and faults of these.

# An instruction of two bytes or more, which may be undefined here: the guest says which.
    .macro MAY_FAULT name, instruction:vararg
GUEST "system/\name", long
GATE 6, 1f
GATE 13, 3f
    \instruction
2:  pushfq
    popq %rax
    stosq
    END
3:  addq $8, %rsp
1:  movq 16(%rsp), %rax
    andl $~RF, %eax
    stosq
    movb $6, %al
    outb %al, $PRINT
    movq $2b, (%rsp)
    iretq
    .endm

MAY_FAULT mwait, mwait
MAY_FAULT monitor, monitor
MAY_FAULT rdfsbase, rdfsbase %rbx
MAY_FAULT xgetbv, xgetbv
MAY_FAULT vmcall, .byte 0x0f, 0x01, 0xd4
MAY_FAULT rdpmc, rdpmc
MAY_FAULT clac, clac
MAY_FAULT ltr_of_a_busy_task, ltr %r14w
MAY_FAULT lldt_of_nothing, lldt %cx
MAY_FAULT wrmsr_of_an_unknown_register, wrmsr
MAY_FAULT rdmsr_of_an_unknown_register, rdmsr
MAY_FAULT lgdt_of_no_canonical_address, lgdt (%r15)
MAY_FAULT sysexit, sysexitl
MAY_FAULT cr4_with_reserved_bits, movq %r15, %cr4
MAY_FAULT cr0_with_reserved_bits, movq %r15, %cr0
MAY_FAULT swapgs_twice, swapgs
MAY_FAULT invd_is_privileged, wbinvd

GUEST "system/xbegin", long
GATE 6, 1f
    .byte 0xc7, 0xf8                    # xbegin 2f
    .long 2f - . - 4
    pushfq
    popq %rbx
    .byte 0x0f, 0x01, 0xd5              # xend
2:  pushfq
    popq %rax
    andl $TF, %eax
    stosq
    END
1:  movq 16(%rsp), %rax
    andl $TF, %eax
    stosq
    movq $2b, (%rsp)
    iretq

GUEST "system/cpuid", long
    .irp leaf, 0, 1, 2, 4, 7, 0x80000000, 0x80000001, 0x80000008
    movl $\leaf, %eax
    xorl %ecx, %ecx
    cpuid
    stosl
    movl %ecx, %eax
    stosl
    movl %edx, %eax
    stosl
    .endr
    xorl %ebx, %ebx                     # the local APIC's id and more
    END

GUEST "system/cpuid_in_user_mode", user
    xorl %eax, %eax
    cpuid
    stosl
    pushfq
    popq %rax
    stosq
    END

GUEST "system/time_goes_on", long
    rdtsc
    movl %eax, %r8d
    shlq $32, %rdx
    orq %rdx, %r8
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    cmpq %r8, %rax
    setae %al
    stosb
    xorl %eax, %eax
    xorl %edx, %edx
    xorl %r8d, %r8d
    pushfq
    popq %rbx
    END

GUEST "system/rdtscp", long
GATE 6, 1f
GATE 13, 3f
    SET_MSR 0xc0000103, 0x77
    rdtscp
    movl %ecx, DATA
2:  xorl %eax, %eax
    xorl %edx, %edx
    pushfq
    popq %rbx
    END
3:  addq $8, %rsp
1:  movq $2b, (%rsp)
    iretq

GUEST "system/msrs", long
GATE 13, 1f
    .irp register, 0x174, 0x175, 0x176, 0xc0000081, 0xc0000082, 0xc0000084, 0xc0000100, 0xc0000102
    SET_MSR \register, 0x1230
    rdmsr
    stosl
    .endr
    movl $0xc0000080, %ecx
    rdmsr
    stosl
    END
1:  movl $0x6b, %eax
    outb %al, $PRINT
    addq $8, %rsp
    addq $2, (%rsp)
    iretq

GUEST "system/control_registers", long
    .irp register, cr0, cr3, cr4, cr8
    movq %\register, %rax
    stosq
    movq %rax, %\register
    .endr
    clts
    smsww %ax
    stosw
    lmsww %ax
    pushfq
    popq %rax
    stosq
    END

GUEST "system/cr3_is_loaded_again_and_the_page_is_there", long
    movq $MISSING | PRESENT, MISSING_ENTRY
    movq %cr3, %rax
    movq %rax, %cr3
    movq %rbx, MISSING
    END

GUEST "system/write_protect_is_off_for_a_while", long
    movq %cr0, %rax
    btrq $16, %rax
    movq %rax, %cr0
    movq %rbx, READONLY
    btsq $16, %rax
    movq %rax, %cr0
    END

GUEST "system/page_tables_change_under_the_code", long
    movq $READONLY | PRESENT, MISSING_ENTRY
    movq MISSING, %rax
    stosq
    movq $DATA | PRESENT, MISSING_ENTRY
    invlpg MISSING
    movq $0x1234, DATA
    movq MISSING, %rax
    stosq
    END

GUEST "system/descriptor_tables", long
    sgdt DATA
    sidt DATA + 0x10
    lgdt DATA
    lidt DATA + 0x10
    str %ax
    stosw
    sldt %ax
    stosw
    pushfq
    popq %rax
    stosq
    END

# The interrupt table moves: gates must be looked up where it is now.
GUEST "system/idt_moves", long
GATE 6, 1f
    leaq DATA + 0x100, %rdi
    leaq IDT64, %rsi
    movl $0x20, %ecx
    rep movsq
    sidt DATA
    movq $DATA + 0x100, DATA + 2
    lidt DATA
    movl $RESULTS, %edi
    ud2
    END
1:  movq 16(%rsp), %rax
    stosq
    addq $2, (%rsp)
    iretq

GUEST "system/gate_changes_before_the_fault", long
GATE 6, 1f
GATE 0xf0, 2f                           # for the check of each step: this is a handler
    movl $2f, %eax
    movw %ax, IDT64 + 6 * 16
    ud2
    END
1:  hlt
2:  movq 16(%rsp), %rax
    stosq
    addq $2, (%rsp)
    iretq

GUEST "system/segments_are_loaded", long
    movl $USER_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl $KERNEL_DATA, %eax
    movl %eax, %ds
    movl %eax, %fs
    movl %eax, %gs
    xorl %eax, %eax
    movl %eax, %gs
    END

GUEST "system/lar_and_verr", long
    larl %r14d, %eax
    pushfq
    popq %rax
    stosq
    verr %r14w
    pushfq
    popq %rax
    stosq
    END

GUEST "system/swapgs", long
    SET_MSR 0xc0000102, DATA
    swapgs
    movq %rbx, %gs:8
    swapgs
    END

GUEST "system/kernel_chips_are_read", long
    inb $0x21, %al
    stosb
    inb $0x61, %al
    andb $0xf, %al
    stosb
    movb $0xff, %al
    outb %al, $0x21
    inb $0x21, %al
    stosb
    END

GUEST "system/long_mode_is_left_and_entered", long
    pushfq
    popq %rax
    stosq
    ljmpl *3f
3:  .long 1f
    .word CODE32
    .code32
1:  movl %cr0, %eax
    btrl $31, %eax
    movl %eax, %cr0
    pushfl
    popl %ebx
    movl %ebx, DATA
    btsl $31, %eax
    movl %eax, %cr0
    ljmp $CODE64, $2f
    .code64
2:  pushfq
    popq %rax
    stosq
    END

GUEST "system/many_nops_then_pushf", long
    .fill 40, 1, 0x90
    pushfq
    popq %rax
    stosq
    END

GUEST "system/double_fault", long
GATE 8, 1f, ist=1
    movl $0, DATA
    movb $0x6e, IDT64 + 6 * 16 + 5      # the gates of #UD and #NP are not present
    movb $0x6e, IDT64 + 11 * 16 + 5
    ud2
1:  movq 24(%rsp), %rax
    stosq
    END

GUEST "system/fault_while_the_frame_is_pushed", long
GATE 14, 1f, ist=1
GATE 6, 2f
    movq $MISSING + 0x1000, %rsp
    ud2
3:  movq $STACK, %rsp
    END
1:  movq $MISSING | PRESENT, MISSING_ENTRY
    movq 24(%rsp), %rbx
    andl $~RF, %ebx
    movq %rbx, DATA
    addq $8, %rsp
    iretq
2:  movq 16(%rsp), %rax
    stosq
    movq $3b, (%rsp)
    iretq
