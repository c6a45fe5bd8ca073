# Reads its clocks in a loop and notes the largest step of each: the guest that must not see a stop.
#
# `max_tsc` and `max_clock` are the most that the TSC and kvmclock (in nanoseconds) rose between two reads
# in a row, and `backwards` is how often one of them fell. A debugger sets them to 0. `tsc` and `clock` are
# the last reads. `ticks` counts the local APIC's timer at 1 kHz, and `pit_ticks` the 8254's at 100 Hz.

#include "common.inc"

    .set TIMER_VECTOR, 0x20
    .set PIT_VECTOR, 0x21
    .set TIMER_PERIODIC, 1 << 17    # SDM 3A, figure 11-8
    .set DIVIDE_BY_1, 0xb           # SDM 3A, figure 11-10
    .set TICKS_PER_MS, 1000000      # KVM's local APIC counts at 1 GHz
    .set PIT_COUNTER_0, 0x40
    .set PIT_CONTROL, 0x43
    .set PIT_RATE_GENERATOR, 0x34   # channel 0, both bytes, mode 2
    .set PIT_COUNT, 11932           # 1193182 Hz / 100
    .set IOAPIC_SELECT, 0xfec00000
    .set IOAPIC_WINDOW, 0xfec00010
    .set IOAPIC_PIN_2, 0x14         # the low half of its entry; the high half is 0: APIC 0
# Linux Documentation/virt/kvm/x86/msr.rst
    .set MSR_KVM_SYSTEM_TIME_NEW, 0x4b564d01
# struct pvclock_vcpu_time_info
    .set PV_VERSION, 0
    .set PV_TSC, 8
    .set PV_SYSTEM_TIME, 16
    .set PV_MUL, 24
    .set PV_SHIFT, 28

    .section .rodata
banner:
    .asciz "clocks guest\n"

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
    COUNTER pit_ticks
    COUNTER iterations
    COUNTER tsc
    COUNTER clock
    COUNTER max_tsc
    COUNTER max_clock
    COUNTER backwards

    .bss
    .balign 64
pvclock:
    .skip 64

    .text
    .globl main64
    .type main64, @function
main64:
    .cfi_startproc
    movl $pvclock, %eax
    orl $1, %eax
    xorl %edx, %edx
    movl $MSR_KVM_SYSTEM_TIME_NEW, %ecx
    wrmsr
    # The gate of the 8254, like that of the timer.
    leaq idt(%rip), %rdi
    movl $pit_handler, %eax
    movw %ax, (16 * PIT_VECTOR)(%rdi)
    movw $CODE64, (16 * PIT_VECTOR + 2)(%rdi)
    movw $0x8e00, (16 * PIT_VECTOR + 4)(%rdi)
    shrl $16, %eax
    movw %ax, (16 * PIT_VECTOR + 6)(%rdi)
    movl $LAPIC_SVR, %eax
    movl $(SVR_ENABLED | SPURIOUS_VECTOR), (%rax)
    movl $IOAPIC_SELECT, %eax
    movl $IOAPIC_PIN_2, (%rax)
    movl $IOAPIC_WINDOW, %eax
    movl $PIT_VECTOR, (%rax)
    movb $PIT_RATE_GENERATOR, %al
    outb %al, $PIT_CONTROL
    movb $(PIT_COUNT & 0xff), %al
    outb %al, $PIT_COUNTER_0
    movb $(PIT_COUNT >> 8), %al
    outb %al, $PIT_COUNTER_0
    movl $LAPIC_TIMER_DIVIDE, %eax
    movl $DIVIDE_BY_1, (%rax)
    movl $LAPIC_LVT_TIMER, %eax
    movl $(TIMER_PERIODIC | TIMER_VECTOR), (%rax)
    movl $LAPIC_TIMER_INITIAL, %eax
    movl $TICKS_PER_MS, (%rax)
    call read_tsc
    movq %rax, tsc(%rip)
    call read_clock
    movq %rax, clock(%rip)
    sti

    .globl loop_start
loop_start:
    incq iterations(%rip)
    call read_tsc
    leaq tsc(%rip), %rsi
    leaq max_tsc(%rip), %rdi
    call note
    call read_clock
    leaq clock(%rip), %rsi
    leaq max_clock(%rip), %rdi
    call note
    jmp loop_start
    .cfi_endproc
    .size main64, . - main64

# RAX is read from the clock whose last value is at RSI and whose largest step is at RDI. Changes RCX.
    .type note, @function
note:
    .cfi_startproc
    movq %rax, %rcx
    subq (%rsi), %rcx
    movq %rax, (%rsi)
    jns 1f
    incq backwards(%rip)
    ret
1:  cmpq (%rdi), %rcx
    jbe 2f
    movq %rcx, (%rdi)
2:  ret
    .cfi_endproc
    .size note, . - note

# Returns the TSC in RAX. Changes RDX.
    .type read_tsc, @function
read_tsc:
    .cfi_startproc
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    ret
    .cfi_endproc
    .size read_tsc, . - read_tsc

# Returns kvmclock in RAX. Changes RCX, RDX, R8, R9.
    .type read_clock, @function
read_clock:
    .cfi_startproc
    leaq pvclock(%rip), %r8
1:  movl PV_VERSION(%r8), %r9d
    testb $1, %r9b
    jnz 1b
    call read_tsc
    subq PV_TSC(%r8), %rax
    movb PV_SHIFT(%r8), %cl
    testb %cl, %cl
    js 2f
    shlq %cl, %rax
    jmp 3f
2:  negb %cl
    shrq %cl, %rax
3:  movl PV_MUL(%r8), %edx
    mulq %rdx
    shrdq $32, %rdx, %rax
    addq PV_SYSTEM_TIME(%r8), %rax
    cmpl PV_VERSION(%r8), %r9d
    jne 1b
    ret
    .cfi_endproc
    .size read_clock, . - read_clock

    .globl timer_handler
    .type timer_handler, @function
timer_handler:
    incq ticks(%rip)
    jmp end_of_interrupt
    .size timer_handler, . - timer_handler

    .type pit_handler, @function
pit_handler:
    incq pit_ticks(%rip)
end_of_interrupt:
    pushq %rax
    movl $LAPIC_EOI, %eax
    movl $0, (%rax)
    popq %rax
    iretq
    .size pit_handler, . - pit_handler
