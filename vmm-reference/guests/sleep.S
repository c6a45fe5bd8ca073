# A processor that sleeps, and one that does to it what a debugger writes into `command`:
#
#   1   INIT and a startup IPI
#   2   an interrupt
#   3   nothing, and prints "awake"
#
# The first processor makes `command` 0 when it takes one, and spins in between. The second one
# halts with interrupts enabled, between `ap_halt` and `ap_woken`. `wakes` counts how often it went on
# from there to `ap_counted`, `handled` its handler's runs, and `flags_image` is the RFLAGS that the
# last of these interrupted.

#include "common.inc"
#include "ap.inc"

    .set WAKE_VECTOR, 0x20
    .set ICR_WAKE, 0x4000 | WAKE_VECTOR

    .section .rodata
banner:
    .asciz "sleep guest\n"
ap_banner:
    .asciz "second cpu\n"
awake:
    .asciz "awake\n"

    .data
    .balign 8
    .macro VARIABLE name
    .globl \name
    .type \name, @object
    .size \name, 8
\name:
    .quad 0
    .endm
    VARIABLE command
    VARIABLE wakes
    VARIABLE handled
    VARIABLE flags_image

    .text
    .globl main64
    .type main64, @function
main64:
    .cfi_startproc
    call prepare_ap
    sti                             # as in smp.S
wait_for_command:
    xorl %edx, %edx
    xchgq %rdx, command(%rip)       # taken at once: the next one may come before it is obeyed
    cmpq $1, %rdx
    je 1f
    cmpq $2, %rdx
    je 2f
    cmpq $3, %rdx
    je 3f
    pause
    jmp wait_for_command
1:  call start_ap
    jmp wait_for_command
2:  movl $ICR_WAKE, %ecx
    call send_to_ap
    jmp wait_for_command
3:  movl $awake, %esi
    call puts
    jmp wait_for_command
    .cfi_endproc
    .size main64, . - main64

    .type ap64, @function
ap64:
    .cfi_startproc
    .cfi_undefined rip
    xorl %ebp, %ebp
    lidt idt_pointer
    movl $LAPIC_SVR, %eax
    movl $(SVR_ENABLED | SPURIOUS_VECTOR), (%rax)
    movl $ap_banner, %esi
    call puts
    sti
    .globl ap_halt
ap_halt:
    hlt
    .globl ap_woken
ap_woken:
    incq wakes(%rip)
    .globl ap_counted
ap_counted:
    jmp ap_halt
    .cfi_endproc
    .size ap64, . - ap64

    .type timer_handler, @function
timer_handler:                      # vector 0x20
    .cfi_startproc simple
    .cfi_signal_frame
    .cfi_def_cfa rsp, 8             # RIP, CS, RFLAGS, RSP, SS: no error code
    .cfi_offset rip, -8
    .cfi_offset rsp, 16
    pushq %rax
    .cfi_adjust_cfa_offset 8
    movq 24(%rsp), %rax
    movq %rax, flags_image(%rip)
    incq handled(%rip)
    movl $LAPIC_EOI, %eax
    movl $0, (%rax)
    popq %rax
    .cfi_adjust_cfa_offset -8
    iretq
    .cfi_endproc
    .size timer_handler, . - timer_handler
