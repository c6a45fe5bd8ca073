# A 1 kHz local-APIC timer beside a loop of ordinary instructions: the guest to be stepped.
#
# A step that stays between loop_start and loop_end has not landed in the interrupt. `ticks` counts
# the handler's runs, `iterations` the loop's, and `flags_image` is what PUSHFQ last stored.

#include "common.inc"

    .set TIMER_VECTOR, 0x20
    .set TIMER_PERIODIC, 1 << 17    # SDM 3A, figure 11-8
    .set DIVIDE_BY_1, 0xb           # SDM 3A, figure 11-10
    .set TICKS_PER_MS, 1000000      # KVM's local APIC counts at 1 GHz

    .section .rodata
banner:
    .asciz "timer guest\n"

    .data
    .balign 8
    .macro COUNTER name
    .globl \name
    .type \name, @object
    .size \name, 8
\name:
    .quad 0
    .endm
    COUNTER ticks
    COUNTER iterations
    COUNTER flags_image
    COUNTER work_sum
    COUNTER scratch

    .text
    .globl main64
    .type main64, @function
main64:
    .cfi_startproc
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbp, 0
    movq %rsp, %rbp
    .cfi_def_cfa_register rbp
    movl $LAPIC_SVR, %eax
    movl $(SVR_ENABLED | SPURIOUS_VECTOR), (%rax)
    movl $LAPIC_TIMER_DIVIDE, %eax
    movl $DIVIDE_BY_1, (%rax)
    movl $LAPIC_LVT_TIMER, %eax
    movl $(TIMER_PERIODIC | TIMER_VECTOR), (%rax)
    movl $LAPIC_TIMER_INITIAL, %eax
    movl $TICKS_PER_MS, (%rax)
    sti

    .globl loop_start
loop_start:
    incq iterations(%rip)
    movq iterations(%rip), %rax
    leaq 7(%rax, %rax, 2), %rcx
    imulq %rcx, %rax
    xchgq %rax, scratch(%rip)
    pushfq
    popq %rdx
    movq %rdx, flags_image(%rip)
    pushq %rdx
    popfq
    movl $3, %edi
    call work
    movl $3, %ecx
    leaq banner(%rip), %rsi
    leaq scratch(%rip), %rdi
    rep movsb
    testb $1, iterations(%rip)
    jz loop_start
    nop
    jmp loop_start
    .cfi_endproc
    .size main64, . - main64

# Adds EDI, EDI - 1, … 1 to work_sum.
    .globl work
    .type work, @function
work:
    .cfi_startproc
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbp, 0
    movq %rsp, %rbp
    .cfi_def_cfa_register rbp
    movl %edi, %ecx
1:  addq %rcx, work_sum(%rip)
    decl %ecx
    jnz 1b
    popq %rbp
    .cfi_def_cfa rsp, 8
    ret
    .cfi_endproc
    .size work, . - work
    .globl loop_end
loop_end:

    .globl timer_handler
    .type timer_handler, @function
timer_handler:
    .cfi_startproc simple
    .cfi_signal_frame
    .cfi_def_cfa rsp, 8             # RIP, CS, RFLAGS, RSP, SS: no error code
    .cfi_offset rip, -8
    .cfi_offset rsp, 16
    pushq %rax
    .cfi_adjust_cfa_offset 8
    incq ticks(%rip)
    movl $LAPIC_EOI, %eax
    movl $0, (%rax)
    popq %rax
    .cfi_adjust_cfa_offset -8
    iretq
    .cfi_endproc
    .size timer_handler, . - timer_handler
