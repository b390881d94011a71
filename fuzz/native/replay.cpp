// Runs inputs through a driver, without libFuzzer: for the tests, with the library as it is shipped.
// `replay < inputs`: each input is its length (32 bits, little endian) and its bytes.

#include <cstdint>
#include <cstdio>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main() {
    long count = 0;
    for (uint8_t head[4]; std::fread(head, 1, 4, stdin) == 4; ++count) {
        const size_t size = head[0] | size_t(head[1]) << 8 | size_t(head[2]) << 16 | size_t(head[3]) << 24;
        std::vector<uint8_t> input(size);
        if (std::fread(input.data(), 1, size, stdin) != size) return 2;
        std::fprintf(stderr, "input %ld\n", count);
        LLVMFuzzerTestOneInput(input.data(), size);
    }
    std::printf("%ld inputs\n", count);
    return 0;
}
