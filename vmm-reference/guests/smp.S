# Two processors that spin in one function. The second is started as real firmware does it: INIT,
# then a startup IPI with the page of a real-mode trampoline (SDM 3A 9.4.4). They spin with interrupts
# enabled, though none come: under Bochs nothing ends kvm_intel's entry into a guest that spins
# without.

#include "common.inc"

    .set TRAMPOLINE, 0x70000
    .set AP_ID, 1
# ICR (SDM 3A, figure 11-12): delivery mode INIT or start-up, level assert.
    .set ICR_INIT, 0x4500
    .set ICR_STARTUP, 0x4600 | (TRAMPOLINE >> 12)

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

    .bss
    .balign 16
    .fill 0x1000
ap_stack_top:

    .text
    .globl main64
    .type main64, @function
main64:
    .cfi_startproc
    movl $trampoline, %esi
    movl $TRAMPOLINE, %edi
    movl $(trampoline_end - trampoline), %ecx
    rep movsb
    movl $LAPIC_SVR, %eax
    movl $(SVR_ENABLED | SPURIOUS_VECTOR), (%rax)
    movl $ICR_INIT, %ecx
    call send_to_ap
    movl $ICR_STARTUP, %ecx
    call send_to_ap
    movl $bsp_counter, %edi
    sti
    .globl bsp_spin
bsp_spin:
    call shared_work
    jmp bsp_spin
    .cfi_endproc
    .size main64, . - main64

# Writes ECX to the interrupt command register, for the second processor.
    .type send_to_ap, @function
send_to_ap:
    .cfi_startproc
    movl $LAPIC_ICR_HIGH, %eax
    movl $(AP_ID << 24), (%rax)
    movl $LAPIC_ICR_LOW, %eax
    movl %ecx, (%rax)
    ret
    .cfi_endproc
    .size send_to_ap, . - send_to_ap

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

# Where the startup IPI goes to: CS = TRAMPOLINE >> 4, IP = 0.
    .code16
trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
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
    movl $ap_stack_top, %esp
    movl $ap64, %edi
    jmp enter_long_mode

    .code64
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
