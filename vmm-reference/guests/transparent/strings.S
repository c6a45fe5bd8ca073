# String instructions: across pages that are not present, and from and to devices.

# The handler maps the page; the instruction goes on where it was.
    .macro STRING name, mode=long
GUEST "strings/\name", \mode
GATE 14, map_missing, ist=1
    .endm

    .code64
map_missing:
    movq $MISSING | PRESENT, MISSING_ENTRY
    pushq %rax
    movq 32(%rsp), %rax                 # the saved RFLAGS
    movl %eax, DATA + 0x80
    popq %rax
    addq $8, %rsp
    iretq

STRING rep_movsb_into_a_missing_page
    leaq MISSING - 3, %rdi
    movl $6, %ecx
    rep movsb
    pushfq
    popfq
    END

STRING rep_movsq_out_of_a_missing_page
    leaq MISSING - 8, %rsi
    movl $3, %ecx
    rep movsq
    END

STRING rep_movsb_out_of_a_missing_page_backwards
    leaq MISSING + 0x1002, %rsi
    leaq DATA + 0x100, %rdi
    movl $6, %ecx
    std
    rep movsb
    cld
    END

STRING rep_stosb_across_a_missing_page
    leaq MISSING - 4, %rdi
    movb $0x5a, %al
    movl $12, %ecx
    rep stosb
    END

STRING stosq_that_begins_before_a_missing_page
    leaq MISSING - 4, %rdi
    stosq
    pushfq
    popq %rax
    stosq
    END

STRING lodsb_from_a_missing_page
    leaq MISSING, %rsi
    lodsb
    movl $RESULTS, %edi
    stosq
    END

STRING repne_scasb_across_a_missing_page
    leaq MISSING - 2, %rdi
    movb $0x77, %al
    movl $5, %ecx
    repne scasb
    pushfq
    popq %rax
    movl $RESULTS, %edi
    stosq
    END

STRING repe_cmpsb_across_a_missing_page
    leaq MISSING - 2, %rdi
    movl $5, %ecx
    repe cmpsb
    pushfq
    popq %rax
    movl $RESULTS, %edi
    stosq
    END

GUEST "strings/rep_movsb", long
    movl $0x11223344, DATA
    movl $4, %ecx
    rep movsb
    pushfq
    popq %rax
    stosq
    END

GUEST "strings/rep_of_nothing", long
    xorl %ecx, %ecx
    rep movsb
    rep stosb
    repe cmpsb
    END

GUEST "strings/rep_movsb_in_16_bit", real
    movw $3, %cx
    rep movsb
    pushfw
    popw %ax
    stosw
    END

GUEST "strings/rep_movsd_in_32_bit", prot
    movl $3, %ecx
    rep movsl
    pushfl
    popl %eax
    stosl
    END

GUEST "strings/overlapping_rep_movsb", long
    movl $0x00000061, DATA
    leaq DATA + 1, %rdi
    movl $6, %ecx
    rep movsb
    END

GUEST "strings/repne_scasb_finds", long
    movl $0x64636261, RESULTS
    movb $'c', %al
    movl $8, %ecx
    repne scasb
    movl %ecx, DATA
    END

GUEST "strings/rep_insb", long
    movw $NEXT, %dx
    movl $5, %ecx
    rep insb
    END

GUEST "strings/rep_insd", long
    movw $NEXT, %dx
    movl $2, %ecx
    rep insl
    END

GUEST "strings/rep_outsb", long
    movl $0x64636261, DATA
    movw $PRINT, %dx
    movl $4, %ecx
    rep outsb
    END

GUEST "strings/rep_outsw_in_real_mode", real
    movl $0x64636261, (%si)
    movw $PRINT, %dx
    movw $2, %cx
    rep outsw
    END

# What the device has delivered once must not be read again.
STRING insb_into_a_missing_page
    movw $NEXT, %dx
    leaq MISSING, %rdi
    insb
    movb MISSING, %al
    movb %al, DATA
    END

STRING rep_insb_into_a_missing_page
    movw $NEXT, %dx
    leaq MISSING - 2, %rdi
    movl $5, %ecx
    rep insb
    END

STRING rep_outsb_out_of_a_missing_page
    movw $PRINT, %dx
    leaq MISSING - 2, %rsi
    movl $4, %ecx
    rep outsb
    END

STRING movsb_from_a_device_into_a_missing_page
    movl $DEVICE, %esi
    leaq MISSING, %rdi
    movsb
    END

STRING movsl_from_a_device_across_a_missing_page
    movl $DEVICE, %esi
    leaq MISSING - 2, %rdi
    movsl
    END

STRING rep_movsb_from_a_device_into_a_missing_page
    movl $DEVICE, %esi
    leaq MISSING - 2, %rdi
    movl $4, %ecx
    rep movsb
    END

GUEST "strings/rep_movsl_from_a_device", long
    movl $DEVICE, %esi
    movl $3, %ecx
    rep movsl
    END

GUEST "strings/rep_movsl_to_a_device", long
    movl $0x64636261, DATA
    movl $DEVICE, %edi
    movl $3, %ecx
    rep movsl
    END

GUEST "strings/rep_stosl_to_a_device", long
    movl $DEVICE, %edi
    movl $3, %ecx
    rep stosl
    END

GUEST "strings/rep_movsb_from_device_to_device", long
    movl $DEVICE, %esi
    movl $DEVICE + 0x100, %edi
    movl $2, %ecx
    rep movsb
    END

GUEST "strings/insb_into_a_read_only_page", long
GATE 14, 1f, ist=1
    movw $NEXT, %dx
    leaq READONLY, %rdi
    insb
2:  nop
    pushfq
    popq %rax
    movl $RESULTS, %edi
    stosq
    END
1:  addq $8, %rsp
    movq $2b, (%rsp)
    iretq
