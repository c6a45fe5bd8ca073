# Stores across pages, stacks in odd places, code that changes itself or lies across pages, arithmetic.

    .macro MEMORY name, mode=long
GUEST "memory/\name", \mode
GATE 14, map_missing, ist=1
    .endm

MEMORY store_across_a_missing_page
    movq %rbx, MISSING - 4
    movq MISSING - 4, %rax
    stosq
    END

MEMORY load_across_a_missing_page
    movq MISSING - 4, %rax
    stosq
    pushfq
    popfq
    END

MEMORY locked_add_in_a_missing_page
    lock addq %rbx, MISSING + 8
    pushfq
    popq %rax
    stosq
    END

MEMORY cmpxchg_in_a_missing_page
    xorl %eax, %eax
    cmpxchgq %rbx, MISSING
    pushfq
    popq %rax
    stosq
    END

MEMORY xchg_across_a_missing_page
    xchgl %ebx, MISSING - 2
    END

MEMORY call_onto_a_missing_stack
    movq $MISSING + 0x1000, %rsp
    call 1f
    movq $STACK, %rsp
    END
1:  pushfq
    popq %rax
    stosq
    ret

MEMORY pop_from_a_missing_page
    movq $MISSING + 0x20, %rsp
    popq %rax
    movq $STACK, %rsp
    END

MEMORY enter_onto_a_missing_page
    movq $MISSING + 0x1000, %rsp
    enter $16, $0
    leave
    movq $STACK, %rsp
    END

GUEST "memory/pusha", prot
    pushal
    pushfl
    popl %eax
    stosl
    popal
    END

GUEST "memory/copy_on_write", long
GATE 14, 1f
    movq %rbx, READONLY
    pushfq
    popfq
    END
1:  movq $READONLY | PRESENT, PAGE_TABLE + 8 * (READONLY >> 12)
    invlpg READONLY
    addq $8, %rsp
    iretq

GUEST "memory/ret_with_a_count", long
    pushq $5
    pushq $5
    call 1f
    movq %rsp, %rax
    stosq
    END
1:  ret $16

GUEST "memory/jump_through_a_missing_page", long
GATE 14, 2f
    jmp *MISSING + 0x80
1:  nop
    END
2:  movq $MISSING | PRESENT, MISSING_ENTRY
    movq $1b, MISSING + 0x80
    addq $8, %rsp
    iretq

# The next instruction, INC EBX, becomes DEC EBX.
GUEST "memory/code_changes_the_next_instruction", long
    movb $0xcb, 1f + 1
    jmp 1f
1:  incl %ebx
    pushfq
    popq %rax
    stosq
    movb $0xc3, 1b + 1
    END

# NOP becomes PUSHF, which the plan of a step must see.
GUEST "memory/code_writes_pushf", long
    movb $0x9c, 1f
    jmp 1f
1:  nop
    popq %rax
    stosq
    movb $0x90, 1b
    END

GUEST "memory/code_writes_the_instruction_that_follows_at_once", long
    movl $1f, %ecx
    movb $0x9c, (%rcx)
1:  nop
    popq %rax
    stosq
    movb $0x90, (%rcx)
    END

GUEST "memory/code_in_a_loop_changes_itself", long
    movl $3, %ecx
1:  nop
    incb 2f + 1
2:  movb $5, %al
    stosb
    loop 1b
    subb $3, 2b + 1
    END

GUEST "memory/code_made_on_the_stack", long
    movl $0xc3589c, %eax                # pushfq; popq %rax; ret
    pushq %rax
    call *%rsp
    stosq
    END

GUEST "memory/pushf_at_the_end_of_a_page", long
    movb $0x9c, MISSING - 0x1001        # pushfq
    movw $0xc358, MISSING - 0x1000      # popq %rax; ret
    call MISSING - 0x1001
    stosq
    END

# The instruction lies across two pages, the second of which is missing.
GUEST "memory/instruction_across_a_missing_page", long
GATE 14, 2f, ist=1
    movw $0xc081, MISSING - 2           # addl $0x11111111, %eax
    jmp MISSING - 2
1:  pushfq
    popq %rax
    stosq
    END
2:  movq $MISSING | PRESENT, MISSING_ENTRY
    movl $0x11111111, MISSING
    movw $0xe3ff, MISSING + 4           # jmp *%rbx
    movl $1b, %ebx
    addq $8, %rsp
    iretq

GUEST "memory/prefixed_pushf", long
    .byte 0x66, 0x48, 0x9c              # pushfq
    popq %rax
    stosq
    .byte 0x66, 0x9c                    # pushfw
    popw %ax
    stosw
    .byte 0xf2, 0x2e, 0x9c
    popq %rax
    stosq
    END

GUEST "memory/stack_in_user_pages_of_the_kernel", long
    movq $DATA + 0x800, %rsp
    pushfq
    popfq
    pushq (%rsp)
    popq %rax
    stosq
    END

GUEST "memory/arithmetic", long
    movl $100, %ecx
    xorl %eax, %eax
1:  addl %ecx, %eax
    imull $3, %eax, %eax
    rorl $5, %eax
    loop 1b
    stosl
    END

GUEST "memory/sse", long
    movl $0x3f800000, %eax
    movd %eax, %xmm0
    addss %xmm0, %xmm0
    movups %xmm0, DATA
    movaps %xmm0, %xmm5
    ldmxcsr DATA + 0x20
    stmxcsr DATA + 0x30
    END

GUEST "memory/x87", long
    fninit
    fld1
    fldpi
    faddp
    fstpl DATA
    fnstsw %ax
    stosw
    END

GUEST "memory/x87_error", long
GATE 16, 1f
    fninit
    fldcw 3f
    fld1
    fldz
    fdivrp
    fwait
2:  pushfq
    popq %rax
    stosq
    fninit
    END
3:  .word 0x33b
1:  movq 16(%rsp), %rax
    stosq
    fnclex
    movq $2b, (%rsp)
    iretq

GUEST "memory/no_coprocessor", long
GATE 7, 1f
    movq %cr0, %rax
    orl $8, %eax
    movq %rax, %cr0
    movups %xmm0, DATA
    nop
    END
1:  movq 16(%rsp), %rbx
    movq %rbx, DATA + 0x40
    clts
    iretq

GUEST "memory/device", long
    movb DEVICE, %al
    stosb
    movq DEVICE + 8, %rax
    stosq
    movl %eax, DEVICE + 4
    addl %ebx, DEVICE
    pushq DEVICE
    popq %rax
    stosq
    popq DATA
    END

GUEST "memory/device_as_a_stack", long
    movq $DEVICE + 0x800, %rsp
    pushq %rbx
    popq %rax
    movq $STACK, %rsp
    stosq
    END

GUEST "memory/ports", long
    inb $NEXT, %al
    stosb
    inw $NEXT, %ax
    stosw
    inl $NEXT, %eax
    stosl
    outb %al, $PRINT
    outw %ax, $PRINT
    outl %eax, $PRINT
    END

GUEST "memory/user_code_reads_ports", user
    inb $NEXT, %al
    outb %al, $PRINT
    movl DEVICE, %eax
    movl %eax, DEVICE
    stosl
    END

# The port is not in the bitmap.
GUEST "memory/user_code_may_not_read_a_port", user
GATE 13, 1f
    movw $0x210, %dx
    inb %dx, %al
2:  END
1:  movq 24(%rsp), %rax
    stosq
    addq $8, %rsp
    movq $2b, (%rsp)
    iretq
