# A guest that resets its processor by each means that a PC has, and comes back each time. A shutdown status
# in the CMOS makes the firmware jump to code here, which then boots this program again. Its state is in
# memory below the program, which a boot leaves alone.
#
# Exit codes at the debug-exit port: 5, the number of resets, if all worked. At the first failure: 0x40 plus
# the reset's number if the resume code did not run once, 0x50 if port 92 has not kept its bit.

#include "common.inc"
#include "cmos.inc"

    .set SYSTEM_CONTROL_A, 0x92
    .set FAST_INIT, 1
    .set I8042_DATA, 0x60
    .set I8042_READ_OUTPUT_PORT, 0xd0
    .set I8042_WRITE_OUTPUT_PORT, 0xd1
    .set RESET_CONTROL, 0xcf9
    .set RESET_CPU, 4
    .set APIC_ID, 0
    .set ICR_INIT, 0x4500

    .set RESUME, 0x1000
    .set WAY, 0x2000                # how many have been tried
    .set RESUMED, 0x2004            # how often the resume code has run since
    .set WAYS, 5

    .section .rodata
banner:
    .asciz "reset guest\n"
    .balign 8
ways:
    .quad port_92, command_fe, output_port, port_cf9, init_ipi

    .text
    .globl main64
    .type main64, @function
main64:
    .cfi_startproc
    movl WAY, %ebx
    testl %ebx, %ebx
    jz 1f
    leal 0x40(%rbx), %eax
    cmpl $1, RESUMED
    jne exit
    movl $SYSTEM_CONTROL_A, %edx
    inb %dx, %al
    testb $FAST_INIT, %al           # set by the first reset; a reset of the machine would clear it
    movl $0x50, %eax
    jz exit
    movl $WAYS, %eax
    cmpl %eax, %ebx
    je exit
1:  movl $resume, %esi
    movl $RESUME, %edi
    movl $(resume_end - resume), %ecx
    rep movsb
    movl $RESUME, RESUME_VECTOR     # offset, and segment 0
    movb $SHUTDOWN_STATUS, %al
    outb %al, $CMOS_INDEX
    movb $JUMP_40_67, %al
    outb %al, $CMOS_DATA
    movl $0, RESUMED
    incl WAY
    call *ways(,%rbx,8)
    cli
2:  hlt
    jmp 2b
exit:
    movl $DEBUG_EXIT, %edx
    outb %al, %dx
    jmp 2b
    .cfi_endproc
    .size main64, . - main64

port_92:
    inb $SYSTEM_CONTROL_A, %al
    orb $FAST_INIT, %al
    outb %al, $SYSTEM_CONTROL_A
    ret

command_fe:
    movb $I8042_RESET, %al
    outb %al, $I8042_COMMAND
    ret

output_port:
    movb $I8042_READ_OUTPUT_PORT, %al
    outb %al, $I8042_COMMAND
    inb $I8042_DATA, %al
    movb %al, %cl
    movb $I8042_WRITE_OUTPUT_PORT, %al
    outb %al, $I8042_COMMAND
    movb %cl, %al
    andb $~1, %al                   # bit 0: the processor is not reset
    outb %al, $I8042_DATA
    ret

port_cf9:
    movl $RESET_CONTROL, %edx
    xorl %eax, %eax
    outb %al, %dx
    movb $RESET_CPU, %al
    outb %al, %dx
    ret

init_ipi:
    movl $LAPIC_ICR_HIGH, %eax
    movl $(APIC_ID << 24), (%rax)
    movl $LAPIC_ICR_LOW, %eax
    movl $ICR_INIT, (%rax)
    ret

    .type timer_handler, @function
timer_handler:                      # of common.inc's table, which is not used here
    iretq
    .size timer_handler, . - timer_handler

    .code16
resume:
    incl %cs:RESUMED
    movb $SHUTDOWN_STATUS, %al
    outb %al, $CMOS_INDEX
    xorb %al, %al
    outb %al, $CMOS_DATA
    ljmpw $0xffff, $0
resume_end:
    .code64
