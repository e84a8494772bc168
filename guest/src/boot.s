# From the PVH entry point to Rust code in ring 3.
#
#   32-bit protected mode, no paging ─▶ long mode, ring 0 ─▶ iretq ─▶ guest_main, ring 3
#
# The tests live in ring 3, because a KVM without hardware behind it runs only that natively. The
# page tables are ready-made: the first 4 GiB map to themselves, open to ring 3. An I/O permission
# bitmap of zeroes opens all ports; IOPL alone would not survive an emulated iretq.

.section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18                  # lengths of name and description, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

.section .text.boot, "ax", @progbits
.code32
.global pvh_start
pvh_start:
    cld
    mov esp, offset ring0_stack_end
    mov [start_info], ebx

    mov eax, offset tss             # the base of a TSS descriptor comes in pieces
    mov [gdt_tss + 2], ax
    shr eax, 16
    mov [gdt_tss + 4], al
    mov [gdt_tss + 7], ah

    mov eax, 0x620                  # CR4: PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080             # EFER: LME
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80000033             # CR0: PG, NE, ET, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    .byte 0xea                      # far jump to 0x08:long_mode
    .long long_mode
    .short 0x08

.code64
long_mode:
    mov eax, 0x1b
    mov ds, eax
    mov es, eax
    mov eax, 0x10
    mov ss, eax
    mov eax, 0x28
    ltr ax

    lea rdi, [idt]                  # one gate for each stub, 16 bytes apart
    lea rsi, [exception_stubs]
    mov ecx, 32
1:  mov [rdi], si
    mov word ptr [rdi + 2], 0x08
    mov word ptr [rdi + 4], 0x8e00
    mov rax, rsi
    shr rax, 16
    mov [rdi + 6], ax
    add rdi, 16
    add rsi, 16
    dec ecx
    jnz 1b
    lidt [idt_pointer]

    push 0x1b                       # SS
    lea rax, [ring3_stack_end - 8]  # as if called
    push rax
    push 0x3002                     # RFLAGS: IOPL 3, no interrupts
    push 0x23                       # CS
    lea rax, [guest_main]
    push rax
    iretq

# Each stub leaves vector and error code on the stack.
.balign 16
exception_stubs:
.set vector, 0
.rept 32
    .balign 16
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
    .else
    push 0
    .endif
    push vector
    jmp exception
    .set vector, vector + 1
.endr

# Goes back to ring 3, where exception_report(vector, error code, rip, cr2) tells and ends.
exception:
    pop rdi
    pop rsi
    mov rdx, [rsp]
    mov rcx, cr2
    lea rax, [exception_report]
    mov [rsp], rax
    mov qword ptr [rsp + 8], 0x23
    mov qword ptr [rsp + 16], 0x3002
    lea rax, [exception_stack_end - 8]
    mov [rsp + 24], rax
    mov qword ptr [rsp + 32], 0x1b
    iretq

.section .data.boot, "aw", @progbits
.balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08 ring 0 code, 64-bit
    .quad 0x00cf93000000ffff        # 0x10 ring 0 data
    .quad 0x00cff3000000ffff        # 0x18 ring 3 data
    .quad 0x00affb000000ffff        # 0x20 ring 3 code, 64-bit
gdt_tss:
    .quad 0x0000890000000000 + TSS_LIMIT
    .quad 0
gdt_end:
gdt_pointer:
    .short gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .short 32 * 16 - 1
    .quad idt

.set TSS_LIMIT, 104 + 8192
.balign 16
tss:
    .long 0
    .quad ring0_stack_end           # RSP0
    .fill 90, 1, 0
    .short 104                      # offset of the I/O permission bitmap
    .fill 8192, 1, 0
    .byte 0xff
.balign 8
.global start_info
start_info:
    .quad 0

.balign 4096
pml4:
    .quad pdpt + 7                  # present, writable, ring 3
    .fill 511, 8, 0
pdpt:
    .quad directories + 7
    .quad directories + 0x1007
    .quad directories + 0x2007
    .quad directories + 0x3007
    .fill 508, 8, 0
directories:
.set page, 0
.rept 2048
    .quad page * 0x200000 + 0x87    # 2 MiB
    .set page, page + 1
.endr

.section .bss.boot, "aw", @nobits
.balign 16
.global idt
idt:
    .skip 32 * 16
    .skip 4096
ring0_stack_end:
    .skip 16384
exception_stack_end:
    .skip 131072
ring3_stack_end:
