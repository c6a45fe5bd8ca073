# An interpreter of scripts, for the conformance suite of the interrupt controllers
# (tests/conformance/): each processor runs a table of operations that the host has written into
# memory, and logs their results and the vectors that are delivered, in order.
#
# The host's side of the layout below is tests/conformance/wire.rs.

#include "common.inc"

# What the host fills in.
    .set SCRIPTS, 0x200000          # per processor, 8 addresses: its script at the nth start
    .set STARTS, 8
    .set HANDLERS, 0x201000         # per vector, the address of the script its handler runs, or 0
    .set BARRIERS, 0x202000         # 32-bit counters
    .set OPERATIONS, 0x300000       # 32 bytes each
# What it reads.
    .set LOG_HEAD, 0x203000         # how many entries were begun
    .set LOG, 0x210000              # 32 bytes each
    .set LOG_ENTRIES, 0x1000         # more is a storm

# An operation.
    .set SIZE, 1
    .set A, 8
    .set B, 16
    .set C, 24
    .set OPERATION_SIZE, 32

# An entry of the log: kind, processor, index of the operation, two values.
    .set VALUE, 1
    .set FAULT, 2
    .set VECTOR, 3
    .set STARTED, 4
    .set FATAL, 5

# What each processor has for itself, at R15 in all of the code below.
    .set CPU, 0x00
    .set TIMES_STARTED, 0x08
    .set FIXUP, 0x10                # where a fault that is expected goes on, or 0
    .set CAUGHT, 0x18               # the vector of that fault, or -1
    .set DELIVERED, 0x20            # how often any vector came
    .set COUNTS, 0x400              # per vector, how often it came
    .set PER_CPU, 0x2000
    .set CPUS, 32

    .set HOST_PORT, 0x5c0           # the address of an operation for the host
    .set SYNC_PORT, 0x5c4           # nothing but an exit
    .set DONE_PORT, 0x5c8           # the end: 0, or a processor is lost

    .set TRAMPOLINE, 0x70000
    .set TRAMPOLINES, 2             # in as many pages
    .set NMI, 2

    .section .rodata
banner:
    .asciz "script guest\n"
    .balign 8
script_idt_pointer:
    .word script_idt_end - script_idt - 1
    .quad script_idt

    .balign 8
operations:
    .quad op_end, op_out, op_in, op_write, op_read, op_wrmsr, op_rdmsr, op_write_cr8
    .quad op_read_cr8, op_sti, op_cli, op_halt, op_window, op_barrier, op_host, op_wait
    .quad op_deadline, op_spin, op_poll, op_mark, op_sti_cli, op_halt_for, op_cpuid, op_count
    .quad op_sync, op_write_until
    .set OPERATION_COUNT, (. - operations) / 8

    .bss
    .balign 0x1000
per_cpu:
    .fill PER_CPU * CPUS

    .text
    .globl main64
    .type main64, @function
main64:
    .cfi_startproc
    .cfi_undefined rip
    movl $per_cpu, %r15d
    leaq PER_CPU(%r15), %rsp
    lidt script_idt_pointer
    movl $TRAMPOLINE, %ebx
    movl $TRAMPOLINES, %edx
1:  movl $trampoline, %esi
    movl %ebx, %edi
    movl $(trampoline_end - trampoline), %ecx
    rep movsb
    addl $0x1000, %ebx
    decl %edx
    jnz 1b
    movq SCRIPTS, %rdi
    call run_script
    xorl %eax, %eax
    jmp done
    .cfi_endproc
    .size main64, . - main64

# Ends the machine.
    .type done, @function
done:
    .cfi_startproc
    .cfi_undefined rip
    movl $DONE_PORT, %edx
    outl %eax, %dx
1:  cli
    hlt
    jmp 1b
    .cfi_endproc
    .size done, . - done

# Runs the script at RDI; changes all registers but RBX, RBP, RSP and R15.
    .globl run_script
    .type run_script, @function
run_script:
    .cfi_startproc
    pushq %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbx, 0
    movq %rdi, %rbx
    jmp 2f
advance:
    addq $OPERATION_SIZE, %rbx
2:  movzbl (%rbx), %eax
    cmpl $OPERATION_COUNT, %eax
    jae 3f
    movzbl SIZE(%rbx), %r12d        # R12: the size
    movq A(%rbx), %rsi              # RSI, RDI: its operands
    movq B(%rbx), %rdi
    jmp *operations(, %rax, 8)
3:  movl $FATAL, %ecx
    xorl %edx, %edx
    call log
    movl $1, %eax
    jmp done

op_end:
    popq %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore rbx
    ret
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbx, 0

# Each of the following ends with `advance`, or with a log entry before it.
log_eax:
    movl %eax, %eax                 # zero-extended
log_rax:
    xorl %edx, %edx
log_rax_rdx:
    movl $VALUE, %ecx
    call log
    jmp advance

# OUT: size, A the port, B the value.
op_out:
    movl %esi, %edx
    movl %edi, %eax
    cmpl $2, %r12d
    je 1f
    ja 2f
    outb %al, %dx
    jmp advance
1:  outw %ax, %dx
    jmp advance
2:  outl %eax, %dx
    jmp advance

# IN: size, A the port.
op_in:
    movl %esi, %edx
    xorl %eax, %eax
    cmpl $2, %r12d
    je 1f
    ja 2f
    inb %dx, %al
    jmp log_rax
1:  inw %dx, %ax
    jmp log_rax
2:  inl %dx, %eax
    jmp log_eax

# Memory write: size, A the address, B the value.
op_write:
    cmpl $2, %r12d
    je 1f
    jb 4f
    cmpl $4, %r12d
    je 2f
    movq %rdi, (%rsi)
    jmp advance
1:  movw %di, (%rsi)
    jmp advance
2:  movl %edi, (%rsi)
    jmp advance
4:  movb %dil, (%rsi)
    jmp advance

# 32-bit memory write, repeated until a processor has reached barrier C: A the address, B the
# value.
op_write_until:
    movl %edi, (%rsi)
    movl $1000, %ecx
1:  pause
    decl %ecx
    jnz 1b
    movq C(%rbx), %rax
    cmpl $0, BARRIERS(, %rax, 4)
    je op_write_until
    jmp advance

# Memory read: size, A the address.
op_read:
    xorl %eax, %eax
    cmpl $2, %r12d
    je 1f
    jb 4f
    cmpl $4, %r12d
    je 2f
    movq (%rsi), %rax
    jmp log_rax
1:  movw (%rsi), %ax
    jmp log_rax
2:  movl (%rsi), %eax
    jmp log_rax
4:  movb (%rsi), %al
    jmp log_rax

# WRMSR: A the register, B the value. Logs 0, or the fault.
op_wrmsr:
    movl %esi, %ecx
    movl %edi, %eax
    movq %rdi, %rdx
    shrq $32, %rdx
    movq $-1, CAUGHT(%r15)
    movq $1f, FIXUP(%r15)
    wrmsr
1:  xorl %eax, %eax
    xorl %edx, %edx
    jmp log_unless_caught

# RDMSR: A the register. Logs its value, or the fault.
op_rdmsr:
    movl %esi, %ecx
    movq $-1, CAUGHT(%r15)
    movq $1f, FIXUP(%r15)
    rdmsr
1:  shlq $32, %rdx
    orq %rdx, %rax
    jmp log_unless_caught

# MOV CR8: B the value. Logs 0, or the fault.
op_write_cr8:
    movq $-1, CAUGHT(%r15)
    movq $1f, FIXUP(%r15)
    movq %rdi, %cr8
1:  xorl %eax, %eax

log_unless_caught:
    movq $0, FIXUP(%r15)
    movq CAUGHT(%r15), %rdx
    testq %rdx, %rdx
    js log_rax
    movq %rdx, %rax
    xorl %edx, %edx
    movl $FAULT, %ecx
    call log
    jmp advance

op_read_cr8:
    movq %cr8, %rax
    jmp log_rax

op_sti:
    sti
    jmp advance

op_cli:
    cli
    jmp advance

# STI; CLI: nothing is delivered in the shadow of STI.
op_sti_cli:
    sti
    cli
    jmp advance

# STI; HLT; CLI. Goes on after one interrupt.
op_halt:
    sti
    hlt
    cli
    jmp advance

# HLT with interrupts as they are.
op_halt_for:
    hlt
    jmp advance

# Everything that can be delivered is delivered here, at the latest one vector after each exit: a KVM that
# emulates this code looks for interrupts at an exit and not after each instruction, and so may a VMM with
# emulated chips.
op_window:
    sti
    nop
1:  movq DELIVERED(%r15), %rcx
    call sync
    cmpq %rcx, DELIVERED(%r15)
    jne 1b
    cli
    jmp advance

# An exit.
op_sync:
    call sync
    jmp advance

# A the barrier, B how many processors meet there.
op_barrier:
    lock incl BARRIERS(, %rsi, 4)
1:  cmpl %edi, BARRIERS(, %rsi, 4)
    jae advance
    pause
    jmp 1b

# The host reads the operation, and writes its result to C.
op_host:
    movl $HOST_PORT, %edx
    movl %ebx, %eax
    outl %eax, %dx
    movq C(%rbx), %rax
    jmp log_rax

# With interrupts enabled, until the vector A has come B times in all, or for C cycles of the TSC.
# Logs how often it had come, and how many cycles it took.
op_wait:
    call read_tsc
    movq %rax, %r13
1:  sti
    nop
    call sync
    cli
    call read_tsc
    subq %r13, %rax
    movq %rax, %rdx
    movl COUNTS(%r15, %rsi, 4), %eax
    cmpl %edi, %eax
    jae log_rax_rdx
    cmpq C(%rbx), %rdx
    jb 1b
    jmp log_rax_rdx

# IA32_TSC_DEADLINE: A cycles from now. Logs the deadline.
op_deadline:
    call read_tsc
    addq %rsi, %rax
    movq %rax, %rdx
    movq %rax, %r13
    shrq $32, %rdx
    movl $0x6e0, %ecx
    wrmsr
    movq %r13, %rax
    jmp log_rax

# A cycles.
op_spin:
    call read_tsc
    movq %rax, %r13
1:  pause
    call read_tsc
    subq %r13, %rax
    cmpq %rsi, %rax
    jb 1b
    jmp advance

# Reads 32 bits at A until those of B's low half are as in its high half, or for C cycles. Logs the
# last value, and how many cycles it took.
op_poll:
    call read_tsc
    movq %rax, %r13
    movq %rdi, %r12
    shrq $32, %r12
1:  movl (%rsi), %r14d
    call read_tsc
    subq %r13, %rax
    movq %rax, %rdx
    movl %r14d, %eax
    movl %eax, %ecx
    andl %edi, %ecx
    cmpl %r12d, %ecx
    je log_rax_rdx
    cmpq C(%rbx), %rdx
    jb 1b
    jmp log_rax_rdx

# Logs A.
op_mark:
    movq %rsi, %rax
    jmp log_rax

# CPUID leaf A, subleaf B: logs EBX:EAX and EDX:ECX.
op_cpuid:
    movq %rbx, %r13
    movl %esi, %eax
    movl %edi, %ecx
    cpuid
    shlq $32, %rbx
    orq %rbx, %rax
    movq %r13, %rbx
    shlq $32, %rdx
    orq %rcx, %rdx
    jmp log_rax_rdx

# The number of times that this processor has taken vector A.
op_count:
    movl COUNTS(%r15, %rsi, 4), %eax
    jmp log_rax
    .cfi_endproc
    .size run_script, . - run_script

# An exit. Changes RAX, RDX.
    .type sync, @function
sync:
    .cfi_startproc
    movl $SYNC_PORT, %edx
    outl %eax, %dx
    nop
    ret
    .cfi_endproc
    .size sync, . - sync

# The TSC in RAX. Changes RDX.
    .type read_tsc, @function
read_tsc:
    .cfi_startproc
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    ret
    .cfi_endproc
    .size read_tsc, . - read_tsc

# Appends an entry: ECX its kind, RAX and RDX its values, RBX the operation. Changes R8 to R10.
    .type log, @function
log:
    .cfi_startproc
    movl $1, %r8d
    lock xaddq %r8, LOG_HEAD
    cmpq $LOG_ENTRIES, %r8
    jae log_full
    shlq $5, %r8
    addq $LOG, %r8
    movq CPU(%r15), %r9
    movq %rbx, %r10
    subq $OPERATIONS, %r10
    shrq $5, %r10
    movw %cx, (%r8)
    movw %r9w, 2(%r8)
    movl %r10d, 4(%r8)
    movq %rax, 8(%r8)
    movq %rdx, 16(%r8)
    ret
log_full:
    movl $2, %eax
    jmp done
    .cfi_endproc
    .size log, . - log

# The entry of each vector: pushes its number, and a zero if the processor has pushed no error code.
    .balign 16
stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp interrupted
    .set vector, vector + 1
    .endr
    .set SCRIPT_STUB, 16

# Offsets into the stack below.
    .set SAVED, 14 * 8
    .set FRAME_VECTOR, SAVED + 2 * 8
    .set FRAME_ERROR, FRAME_VECTOR + 8
    .set FRAME_RIP, FRAME_ERROR + 8

    .type interrupted, @function
interrupted:
    .cfi_startproc simple
    .cfi_undefined rip
    pushq FIXUP(%r15)
    pushq CAUGHT(%r15)
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    movq FRAME_VECTOR(%rsp), %rax
    cmpq $32, %rax
    jae deliver
    cmpq $NMI, %rax
    je deliver
    movq FIXUP(%r15), %rcx
    testq %rcx, %rcx
    jnz expected_fault
    cmpq $0, HANDLERS(, %rax, 8)
    jne deliver
    movq FRAME_RIP(%rsp), %rdx
    movl $FATAL, %ecx
    call log
    movl $1, %eax
    jmp done
expected_fault:
    movq %rcx, FRAME_RIP(%rsp)
    movq $0, SAVED + 8(%rsp)        # FIXUP
    movq %rax, SAVED(%rsp)          # CAUGHT
    jmp return
deliver:
    incl COUNTS(%r15, %rax, 4)
    incq DELIVERED(%r15)
    movq FRAME_RIP(%rsp), %rdx
    movl $VECTOR, %ecx
    call log
    movq FRAME_VECTOR(%rsp), %rax
    movq HANDLERS(, %rax, 8), %rdi
    testq %rdi, %rdi
    jz return
    call run_script
return:
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    popq CAUGHT(%r15)
    popq FIXUP(%r15)
    addq $16, %rsp
    iretq
    .cfi_endproc
    .size interrupted, . - interrupted

# Where a startup IPI goes to: CS = its page >> 4, IP = 0.
    .code16
trampoline:
    cli
    movw %cs, %bx
    movw %bx, %ds
    lgdtl (trampoline_gdt - trampoline)
    movl %cr0, %eax
    orb $CR0_PE, %al
    movl %eax, %cr0
    ljmpl $CODE32, $ap32
    .balign 4
trampoline_gdt:
    .word 4 * 8 - 1
    .long gdt
trampoline_end:

    .code32
ap32:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $ap64, %edi
    jmp enter_long_mode

    .code64
    .type ap64, @function
ap64:
    .cfi_startproc
    .cfi_undefined rip
    movzwl %bx, %r14d               # R14: the CS that it started with
    movl $1, %eax
    cpuid
    shrl $24, %ebx                  # the APIC id (SDM 2A, CPUID leaf 1)
    movl %ebx, %r13d
    imull $PER_CPU, %ebx, %r15d
    addl $per_cpu, %r15d
    leaq PER_CPU(%r15), %rsp
    movq %r13, CPU(%r15)
    lidt script_idt_pointer
    movl $OPERATIONS, %ebx
    movq %r14, %rax
    movq TIMES_STARTED(%r15), %rdx
    movl $STARTED, %ecx
    call log
    movq TIMES_STARTED(%r15), %rax
    incq TIMES_STARTED(%r15)
    cmpl $STARTS, %eax
    jae 1f
    shll $3, %r13d                  # STARTS addresses for each processor
    addl %r13d, %eax
    movq SCRIPTS(, %rax, 8), %rdi
    testq %rdi, %rdi
    jz 1f
    call run_script
1:  cli
    hlt
    jmp 1b
    .cfi_endproc
    .size ap64, . - ap64

timer_handler:                      # of common.inc's table, which is not used here
    iretq

    .data
    .balign 16
script_idt:
    .set vector, 0
    .rept 256
    GATE (stubs - text_base + vector * SCRIPT_STUB)
    .set vector, vector + 1
    .endr
script_idt_end:
