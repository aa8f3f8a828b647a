// Sends requests to the device mapper, one after the other; see device_mapper.py.
// The exit status is 0, or the number of the error.

        .globl  _start
_start: mov     x0, #-100               // AT_FDCWD
        adr     x1, path
        mov     x2, #2                  // O_RDWR
        mov     x8, #56                 // openat
        svc     #0
        tbnz    w0, #31, fail
        mov     w19, w0                 // the descriptor
        adr     x20, requests           // the next request
next:   ldp     w1, w21, [x20]          // its number and size; 0 ends them
        cbz     w1, done
        mov     w0, w19
        add     x2, x20, #8             // its argument
        mov     x8, #29                 // ioctl
        svc     #0
        tbnz    w0, #31, fail
        add     x20, x20, x21
        b       next
done:   mov     w0, #0
fail:   neg     w0, w0
        mov     x8, #93                 // exit
        svc     #0

path:   .asciz  "/dev/mapper/control"
        .balign 8, 0
requests:
