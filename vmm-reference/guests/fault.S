# Ends, fails or hangs in the way that the command line names:
#
#   poweroff    ACPI S5 through PM1a control
#   reset       the keyboard controller's reset
#   exit=N      N (decimal) to the debug-exit port
#   triple      a fault with no IDT
#   emulation   an instruction fetch from where there is no memory
#   halt        HLT with interrupts disabled
#   spin        an endless loop, counted in `spins`
#   echo        what comes in on COM1 goes out again

#include "common.inc"

    .set CMDLINE_PADDR, 24          # in hvm_start_info
    .set NO_MEMORY, 0xd0000000

    .section .rodata
banner:
    .asciz "fault guest\n"
unknown:
    .asciz "unknown command\n"

names:
    .asciz "poweroff"
    .asciz "reset"
    .asciz "exit="
    .asciz "triple"
    .asciz "emulation"
    .asciz "halt"
    .asciz "spin"
    .asciz "echo"
    .byte 0
    .balign 8
actions:
    .quad do_poweroff, do_reset, do_exit, do_triple, do_emulation, do_halt, do_spin, do_echo

    .data
    .balign 8
    .globl spins
    .type spins, @object
    .size spins, 8
spins:
    .quad 0

    .text
    .globl main64
    .type main64, @function
main64:
    .cfi_startproc
    movq CMDLINE_PADDR(%rdi), %rbx  # RBX: the command line
    movl $names, %esi               # RSI: the name to compare with
    xorl %ecx, %ecx                 # RCX: its index
    testq %rbx, %rbx
    jz not_found
next_name:
    cmpb $0, (%rsi)
    je not_found
    movq %rbx, %rdi
1:  movb (%rsi), %al
    testb %al, %al
    jz found
    cmpb %al, (%rdi)
    jne skip
    incq %rsi
    incq %rdi
    jmp 1b
skip:
    incq %rsi
    cmpb $0, -1(%rsi)
    jne skip
    incl %ecx
    jmp next_name
found:                              # RDI: what follows the name
    jmp *actions(, %rcx, 8)
not_found:
    movl $unknown, %esi
    call puts
    movb $0x7f, %al
    jmp fail

do_poweroff:
    movl $PM1A_CONTROL, %edx
    movl $PM1A_SLEEP_ENABLE, %eax
    outw %ax, %dx
    jmp do_halt

do_reset:
    movb $I8042_RESET, %al
    outb %al, $I8042_COMMAND
    jmp do_halt

do_exit:
    xorl %eax, %eax
1:  movzbl (%rdi), %edx
    subl $'0', %edx
    cmpl $9, %edx
    ja 2f
    imull $10, %eax, %eax
    addl %edx, %eax
    incq %rdi
    jmp 1b
2:  outb %al, $DEBUG_EXIT
    jmp do_halt

do_triple:
    lidt no_idt
    ud2

do_emulation:
    movl $NO_MEMORY, %eax
    jmp *%rax

    .globl do_halt
do_halt:
    cli
    hlt
    jmp do_halt

    .globl do_spin
do_spin:
    sti                             # as in smp.S
1:  incq spins(%rip)
    jmp 1b

do_echo:
    movl $COM1_LSR, %edx
    inb %dx, %al
    testb $LSR_DATA_READY, %al
    jz do_echo
    movl $COM1, %edx
    inb %dx, %al
    call putc
    jmp do_echo
    .cfi_endproc
    .size main64, . - main64

timer_handler:                      # not used here
    iretq
