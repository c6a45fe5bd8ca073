# What processors do after INIT, with --testdev: the part of a PC's firmware that test images need to come
# back from it. It is linked to FIRMWARE in src/layout.rs, and there is a second copy below 4 GiB.
#
# A processor with a shutdown status goes on where that says. Without one it loads the kernel again, and the
# rest of memory stays as it is.

#include "cmos.inc"

    .set BOOT_PORT, 0xf00           # src/devices/testdev/mod.rs
    .set CODE, 0x10                 # its own GDT's selectors, as in src/boot/state.rs
    .set DATA, 0x18
    .set SEGMENT, 0xf000            # that this is linked in
    .set CR0_PE, 1

    .code16
    .text
    .globl _start
_start:
    cli
    movb $SHUTDOWN_STATUS, %al
    outb %al, $CMOS_INDEX
    inb $CMOS_DATA, %al
    cmpb $JUMP_40_67, %al
    je resume
    movw $BOOT_PORT, %dx
    inl %dx, %eax                   # drops a load that was not booted
    outl %eax, %dx                  # loads it; the value is ignored
    inl %dx, %eax                   # EIP
    movl %eax, %esi
    inl %dx, %eax                   # EBX
    movl %eax, %ebx
    inl %dx, %eax                   # EAX
    lgdtl %cs:(gdt_pointer - (SEGMENT << 4))
    movl %cr0, %ecx
    orb $CR0_PE, %cl
    movl %ecx, %cr0
    ljmpl $CODE, $start32
resume:
    xorw %ax, %ax
    movw %ax, %ds
    ljmpw *RESUME_VECTOR
    .balign 4
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt                       # the copy below 1 MiB
    .balign 8
gdt:                                # null, unused, code, data: flat, and accessed already
    .quad 0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_end:

    .code32
start32:
    movl $DATA, %ecx
    movl %ecx, %ds
    movl %ecx, %es
    movl %ecx, %ss
    movl %ecx, %fs
    movl %ecx, %gs
    jmp *%esi

    .code16
    .org 0xf0
reset_vector:
    ljmpw $SEGMENT, $(_start - (SEGMENT << 4))
    .org 0x100
