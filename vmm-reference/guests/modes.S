# A 32-bit multiboot kernel (ELF32) that goes through the modes of the processor: 32-bit protected mode, 16-bit
# protected mode and real mode, both with a base of CS, 32-bit protected mode again, and long mode, where it ends in a
# loop above 4 GiB.

    .set REAL_BASE, 0x7000
    .set REAL_STACK, 0x9000
    .set HIGH, 0xffffffff80000000

    .set CODE32, 0x08
    .set DATA32, 0x10
    .set CODE16, 0x18
    .set DATA16, 0x20
    .set CODE64, 0x28

    .set CR0_PE, 1 << 0
    .set CR0_PG, 1 << 31
    .set CR4_PAE, 1 << 5
    .set CR4_OSFXSR, 1 << 9
    .set CR4_OSXSAVE, 1 << 18
    .set CPUID_XSAVE_AVX, 1 << 26 | 1 << 28
    .set XCR0_X87_SSE_AVX, 7
    .set EFER, 0xc0000080
    .set EFER_LME, 1 << 8

# Multiboot 1: no flags.
    .set MAGIC, 0x1badb002
    .section .multiboot, "a"
    .balign 4
    .long MAGIC, 0, -MAGIC

    .macro FUNCTION name
    .globl \name
    .type \name, @function
\name:
    .endm

    .text
    .code32
FUNCTION _start
    movl $stack_top, %esp
    lgdt gdt_pointer
    cld
    movl $real_code, %esi
    movl $REAL_BASE, %edi
    movl $(real_code_end - real_code), %ecx
    rep movsb
    pushl $21
    call double
    addl $4, %esp
    .globl leave32
leave32:
    ljmp $CODE16, $(protected16 - real_code)
    .size _start, . - _start

# Returns twice its argument.
FUNCTION double
    pushl %ebp
    movl %esp, %ebp
    movl 8(%ebp), %eax
    addl %eax, %eax
    .globl doubled
doubled:
    popl %ebp
    ret
    .size double, . - double

# Runs at REAL_BASE, in segments that begin there.
    .code16
real_code:
    .globl protected16
protected16:
    movw $DATA16, %ax
    movw %ax, %ds
    movw %ax, %ss
    movl %cr0, %eax
    andb $~CR0_PE, %al
    movl %eax, %cr0
    ljmp $(REAL_BASE >> 4), $(real16 - real_code)
    .globl real16
real16:
    movw $(REAL_BASE >> 4), %ax
    movw %ax, %ds
    movw $(REAL_STACK >> 4), %ax
    movw %ax, %ss
    movl $0xffe, %esp
    movw $0x1234, %ax
    call real_work
    lgdtl (real_gdt_pointer - real_code)
    movl %cr0, %eax
    orb $CR0_PE, %al
    movl %eax, %cr0
    ljmpl $CODE32, $back32
    .globl real_work
real_work:
    pushw %ax
    .globl real_pushed
real_pushed:
    incw %ax
    popw %ax
    ret
real_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
real_code_end:

    .code32
FUNCTION back32
    movl $DATA32, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $stack_top, %esp
    pushl $50
    call double
    addl $4, %esp
    movl %cr4, %eax
    orl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl %cr0, %eax
    orl $CR0_PG, %eax
    movl %eax, %cr0
    .globl compatibility
compatibility:
    ljmp $CODE64, $start64
    .size back32, . - back32

    .code64
FUNCTION start64
    movabsq $0x1122334455667788, %rax
    movabsq $HIGH, %rbx
    movl $high_loop, %esi
    addq %rbx, %rsi
# Enables AVX if there is XSAVE and AVX (SDM 1 13.2, 14.3).
    movl $1, %eax
    cpuid
    andl $CPUID_XSAVE_AVX, %ecx
    cmpl $CPUID_XSAVE_AVX, %ecx
    jne 1f
    movq %cr4, %rax
    orl $(CR4_OSFXSR | CR4_OSXSAVE), %eax
    movq %rax, %cr4
    movl $XCR0_X87_SSE_AVX, %eax
    xorl %ecx, %ecx
    xorl %edx, %edx
    xsetbv
    movl $has_avx, %edi
    movl $1, (%rdi)
1:  movq %rsi, %rcx
    xorl %edx, %edx
    .globl to_high
to_high:
    jmp *%rcx
    .size start64, . - start64

# With an exit in each round: while a guest spins without one, nothing wakes up in a VMM inside Bochs.
FUNCTION high_loop
    incq %rdx
    outb %al, $0x80
    jmp high_loop
    .size high_loop, . - high_loop

    .data
    .globl has_avx
    .type has_avx, @object
    .size has_avx, 4
has_avx:
    .long 0
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    # CODE32
    .quad 0x00cf93000000ffff    # DATA32
    .quad 0x00009b000000ffff | REAL_BASE << 16 # CODE16
    .quad 0x000093000000ffff | REAL_BASE << 16 # DATA16
    .quad 0x00af9b000000ffff    # CODE64
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

# The first GiB, also at HIGH: present, writable, large.
    .balign 0x1000
pml4:
    .long pdpt + 3, 0
    .fill 510, 8, 0
    .long pdpt + 3, 0
    .balign 0x1000
pdpt:
    .long pd + 3, 0
    .fill 509, 8, 0
    .long pd + 3, 0
    .quad 0
    .balign 0x1000
pd:
    .set page, 0
    .rept 512
    .quad (page << 21) | 0x83
    .set page, page + 1
    .endr

    .bss
    .balign 16
    .fill 0x1000
stack_top:
