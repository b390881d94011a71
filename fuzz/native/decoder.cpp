// a decoder layer for one new token of each of some rows, with its cache
#include "matrix.h"

extern "C" void halfbyte_decode(const void*, const void*, int64_t, int, int, int);

namespace {

using namespace fuzz;

// The arguments of decoder/cpu.cpp.
struct Layer {
    const void *matrix, *bias, *a, *b;
    int64_t rank;
};
struct Norm {
    const void* weight;
    int64_t columns;
    float eps, shift;
    int64_t narrow;
};
struct Block {
    Layer linears[7];
    Norm norms[6];
    void *keys, *values;
    int64_t keys_by[3], values_by[3], act, angles, window;
    float scale, cap, residual;
};
struct Angles {
    const void *cos, *sin;
};
struct Step {
    void* hidden;
    const Angles* angles;
    const uint8_t* visible;
    int64_t rows, width, inner, heads, kv_heads, head, rotary, position, wide;
};

void drive(Input& input) {
    Buffers buffers(input);
    const int isa = input.isa(), dtype = input.byte() % 2, threads = input.threads();
    const int64_t rows = input.count(3, 16), width = input.number(1, 150), inner = input.number(1, 150), kv_heads = input.number(1, 3);
    const int64_t heads = kv_heads * input.number(1, 3), head = input.number(1, 40), room = input.number(1, 90);
    const int64_t position = input.number(0, room - 1), rotary = input.number(0, head / 2) * 2, q = heads * head, k = kv_heads * head;
    const int64_t outputs[7] = {q, k, k, width, inner, inner, width}, inputs[7] = {width, width, width, q, width, width, inner};
    Matrix matrices[7];
    Block block{};
    for (int i = 0; i < 7; ++i) {
        matrices[i] = matrix(input, buffers, outputs[i], inputs[i], input.byte() % 5);
        Layer& layer = block.linears[i];
        layer.matrix = matrices + i;
        if (input.flag()) layer.bias = buffers.of(dtype, outputs[i]);
        if (!input.flag()) continue;
        layer.rank = input.count(8, 70);
        layer.a = buffers.of(dtype, layer.rank * inputs[i]), layer.b = buffers.of(dtype, outputs[i] * layer.rank);
    }
    const int64_t wide[6] = {width, input.flag() ? q : head, input.flag() ? k : head, width, width, width};
    for (int i = 0; i < 6; ++i)
        if (input.flag())
            block.norms[i] = {buffers.of(dtype, wide[i]), wide[i], input.real(), input.flag() ? 1.0f : 0.0f, input.flag()};
    const int64_t more = input.number(0, 2);  // rows of the cache that are done with
    block.keys = buffers.of(dtype, (rows + more) * k * room), block.values = buffers.of(dtype, (rows + more) * k * room);
    for (int64_t* by : {block.keys_by, block.values_by}) by[0] = k * room, by[1] = head * room, by[2] = head;
    block.act = input.byte() % 3, block.window = input.flag() ? input.number(1, 100) : 0;
    block.scale = 0.1f, block.cap = input.flag() ? 5.0f : 0.0f, block.residual = input.real();
    Step step{buffers.of(dtype, rows * width), nullptr, nullptr, rows, width, inner, heads, kv_heads, head, rotary, position, 0};
    block.angles = rotary ? 0 : -1, step.wide = input.flag() || dtype == kF32;
    const int angle = step.wide ? kF32 : dtype;
    const Angles angles{buffers.of(angle, rows * rotary), buffers.of(angle, rows * rotary)};
    step.angles = &angles;
    if (input.flag()) step.visible = buffers.make<uint8_t>(rows * (position + 1));
    halfbyte_decode(&step, &block, 1, dtype, threads, isa);
    buffers.check();
}

}  // namespace

FUZZ_DRIVER(drive)
