# Two processors that spin in one function, with interrupts enabled, though none come: under Bochs
# nothing ends kvm_intel's entry into a guest that spins without.

#include "common.inc"
#include "ap.inc"

    .section .rodata
banner:
    .asciz "smp guest\n"
ap_banner:
    .asciz "second cpu\n"

    .data
    .balign 8
    .globl bsp_counter
    .type bsp_counter, @object
    .size bsp_counter, 8
bsp_counter:
    .quad 0
    .globl ap_counter
    .type ap_counter, @object
    .size ap_counter, 8
ap_counter:
    .quad 0

    .text
    .globl main64
    .type main64, @function
main64:
    .cfi_startproc
    call prepare_ap
    call start_ap
    movl $bsp_counter, %edi
    sti
    .globl bsp_spin
bsp_spin:
    call shared_work
    jmp bsp_spin
    .cfi_endproc
    .size main64, . - main64

# Adds one to the counter at RDI.
    .globl shared_work
    .type shared_work, @function
shared_work:
    .cfi_startproc
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbp, 0
    movq %rsp, %rbp
    .cfi_def_cfa_register rbp
    incq (%rdi)
    popq %rbp
    .cfi_def_cfa rsp, 8
    ret
    .cfi_endproc
    .size shared_work, . - shared_work

    .type ap64, @function
ap64:
    .cfi_startproc
    .cfi_undefined rip
    xorl %ebp, %ebp
    lidt idt_pointer
    movl $ap_banner, %esi
    call puts
    movl $ap_counter, %edi
    sti
    .globl ap_spin
ap_spin:
    call shared_work
    jmp ap_spin
    .cfi_endproc
    .size ap64, . - ap64

timer_handler:                      # not used here
    iretq
