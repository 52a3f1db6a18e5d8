// Runs functions of the compiled kernels for another process, which shares a file of memory with it:
// so that a build for another processor, under an emulator, computes for a test on this one.
//
//     host FILE SIZE ADDRESS     maps the file there; each line "FUNCTION ADDRESS" is a call

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>

#define EACH(X)                                                                               \
    X(forward) X(backward) X(product) X(nodes) X(nodes_backward) X(incoming) X(outer)

extern "C" {
int64_t dpa3_abi();
int64_t dpa3_size(int64_t);
#define DECLARE(name) void dpa3_##name##_f32(void *); void dpa3_##name##_f64(void *);
EACH(DECLARE)
}

struct Function {
    const char *name;
    void (*call)(void *);
};

#define ENTRY(name) {"dpa3_" #name "_f32", dpa3_##name##_f32}, {"dpa3_" #name "_f64", dpa3_##name##_f64},
const Function functions[] = {EACH(ENTRY)};

int main(int, char **arguments) {
    void *place = reinterpret_cast<void *>(std::strtoull(arguments[3], nullptr, 10));
    int file = open(arguments[1], O_RDWR);
    void *memory = mmap(place, std::strtoull(arguments[2], nullptr, 10), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_FIXED, file, 0);
    if (memory != place) return 1;
    std::printf("%lld", (long long)dpa3_abi());
    for (int i = 0; i < 5; ++i) std::printf(" %lld", (long long)dpa3_size(i));
    std::printf("\n");
    std::fflush(stdout);
    char name[64];
    unsigned long long address;
    while (std::scanf("%63s %llu", name, &address) == 2) {
        bool found = false;
        for (const Function &function : functions)
            if (!std::strcmp(function.name, name)) {
                function.call(reinterpret_cast<void *>(address));
                found = true;
            }
        std::printf(found ? "done\n" : "unknown\n");
        std::fflush(stdout);
    }
}
