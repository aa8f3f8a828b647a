# Sends requests to the device mapper, one after the other; see device_mapper.py.
# The exit status is 0, or the number of the error.

        .globl  _start
_start: mov     $2, %eax                # open
        lea     path(%rip), %rdi
        mov     $2, %esi                # O_RDWR
        syscall
        test    %eax, %eax
        js      fail
        mov     %eax, %ebp              # the descriptor
        lea     requests(%rip), %rbx    # the next request
next:   mov     (%rbx), %esi            # its number; 0 ends them
        test    %esi, %esi
        jz      done
        mov     4(%rbx), %r12d          # its size
        mov     %ebp, %edi
        lea     8(%rbx), %rdx           # its argument
        mov     $16, %eax               # ioctl
        syscall
        test    %eax, %eax
        js      fail
        add     %r12, %rbx
        jmp     next
done:   xor     %eax, %eax
fail:   neg     %eax
        mov     %eax, %edi
        mov     $60, %eax               # exit
        syscall

path:   .asciz  "/dev/mapper/control"
        .balign 8, 0
requests:
