# The guests of the differential tests (tests/transparent/): one flat image at 0x8000 that holds all of
# them, with a table of records that says where each begins and what it needs.
#
# The host builds the descriptor tables and page tables, and sets the registers of the mode in which a guest
# begins: tests/transparent/layout.rs has the other side of macros.inc.

#include "macros.inc"

    .text
    .globl _start
_start:
# A start-up IPI of vector IMAGE >> 12 begins here: at the offset at DATA + 0x40, with DS at DATA.
    .code16
    movw $DATA >> 4, %ax
    movw %ax, %ds
    ljmp $0, $1f
1:  jmpw *0x40

    .org 0x20                           # the host finds the table here
    .long records, records_end, stray

# A vector that a guest has no handler for ends it. The same bytes in 16, 32 and 64 bit.
    .code64
stray:
    .set vector, 0
    .rept 256
    movb $vector, %al
    outb %al, $STRAY
    hlt
    .set vector, vector + 1
    .endr

    .section .guests, "a"
records:

#include "faults.S"
#include "flags.S"
#include "debug.S"
#include "calls.S"
#include "user.S"
#include "interrupts.S"
#include "strings.S"
#include "memory.S"
#include "system.S"
#include "smp.S"
#include "small.S"
#include "random.S"

    .section .guests, "a"
records_end:
