/* Sparse convolution on the processor; native_backend.py loads it with ctypes.

   Output stationary: a thread keeps a tile of output rows in its cache and adds, cell by cell of the
   kernel, the products of the gathered input rows with that cell's weight. Every output number is
   summed in one fixed order, whatever the number of threads. */

#define _GNU_SOURCE /* madvise */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

enum {
    ROWS = 6,         /* rows of a register tile: 6 x 2 sums, 2 weights, 1 feature in 16 registers */
    TILE = 512,       /* output rows of a task, 192 KiB of the second cache for 96 channels */
    HUGE_PAGE = 1 << 21,
    ROW_BLOCK = 2048, /* target rows of a task of a weight gradient, whose features stay in cache */
    PAIR_BLOCK = 64,  /* pairs gathered at a time there */
    CHANNEL_BLOCK = 96,
    KEY_BLOCK = 16384
};

/* Matrices lie row by row. scale, shift and residual may be NULL. */
typedef struct {
    int64_t targets, cells, inputs, outputs;
    const int32_t *rows; /* source row of (target row, cell), negative where there is none */
    int64_t row_stride, cell_stride;
    const void *features; /* (sources, inputs) */
    const void *weight;   /* (cells, inputs, outputs) */
    const void *scale, *shift; /* (outputs) */
    const void *residual;      /* (targets, outputs) */
    int64_t relu;
    void *output; /* (targets, outputs) */
    int64_t is_double, threads;
} Convolution;

typedef struct {
    int64_t targets, cells, inputs, outputs;
    const int32_t *rows;
    int64_t row_stride, cell_stride;
    const void *features; /* (sources, inputs) */
    const void *gradient; /* (targets, outputs) */
    void *sums;           /* (cells, inputs, outputs), zero on entry */
    int64_t is_double, threads;
} WeightGradient;

typedef void ConvolveTask(const Convolution *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, void *);
typedef void WeightTask(const WeightGradient *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                        ptrdiff_t, void *);

static ptrdiff_t minimum(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* The pairs of one kernel cell among the target rows first..last, without a branch to mispredict; the
   lists have room for last - first. */
static ptrdiff_t find_pairs(const int32_t *rows, ptrdiff_t stride, ptrdiff_t first, ptrdiff_t last,
                            int32_t *targets, int32_t *sources)
{
    ptrdiff_t pairs = 0;
    for (ptrdiff_t row = first; row < last; row++) {
        targets[pairs] = row;
        sources[pairs] = rows[row * stride];
        pairs += sources[pairs] >= 0;
    }
    return pairs;
}

/* 16 bytes are the vectors of every x86-64 and of NEON. */
#define REAL float
#define VECTOR_BYTES 16
#define TARGET
#define NAME(x) x##_float_16
#include "native_tiles.h"

#define REAL double
#define VECTOR_BYTES 16
#define TARGET
#define NAME(x) x##_double_16
#include "native_tiles.h"

#if defined(__x86_64__)
#define REAL float
#define VECTOR_BYTES 32
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_float_32
#include "native_tiles.h"

#define REAL double
#define VECTOR_BYTES 32
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_double_32
#include "native_tiles.h"

#define REAL float
#define VECTOR_BYTES 64
#define TARGET __attribute__((target("avx512f")))
#define NAME(x) x##_float_64
#include "native_tiles.h"

#define REAL double
#define VECTOR_BYTES 64
#define TARGET __attribute__((target("avx512f")))
#define NAME(x) x##_double_64
#include "native_tiles.h"
#endif

typedef struct {
    ptrdiff_t vector_bytes;
    ConvolveTask *convolve[2]; /* of float, of double */
    WeightTask *weight_gradient[2];
} Kernels;

static const Kernels all_kernels[] = {
#if defined(__x86_64__)
    {64, {convolve_float_64, convolve_double_64}, {weight_gradient_float_64, weight_gradient_double_64}},
    {32, {convolve_float_32, convolve_double_32}, {weight_gradient_float_32, weight_gradient_double_32}},
#endif
    {16, {convolve_float_16, convolve_double_16}, {weight_gradient_float_16, weight_gradient_double_16}},
};

static int64_t widest = 64; /* lowered by tests, to reach the other kernels */

void unscene_limit_vector_bytes(int64_t bytes) { widest = bytes; }

static int runs_here(ptrdiff_t vector_bytes)
{
#if defined(__x86_64__)
    if (vector_bytes == 64) return __builtin_cpu_supports("avx512f");
    if (vector_bytes == 32) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return 1;
}

static const Kernels *kernels_of_this_processor(void)
{
    const Kernels *kernels = all_kernels;
    while (kernels->vector_bytes > 16 &&
           (kernels->vector_bytes > widest || !runs_here(kernels->vector_bytes)))
        kernels++;
    return kernels;
}

/* By which Python sees that it would fill other structs. */
int64_t unscene_struct_bytes(void) { return sizeof(Convolution) + sizeof(WeightGradient); }

int64_t unscene_vector_bytes(void) { return kernels_of_this_processor()->vector_bytes; }

static ptrdiff_t divide_up(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

/* Gathered rows lie all over a large matrix: with pages of 4 KiB most of them miss the table of pages
   that the processor keeps. Linux gives larger ones to who asks before writing. */
static void ask_for_huge_pages(void *memory, size_t bytes)
{
#if defined(MADV_HUGEPAGE)
    const uintptr_t first = ((uintptr_t)memory + HUGE_PAGE - 1) & -(uintptr_t)HUGE_PAGE;
    const uintptr_t last = ((uintptr_t)memory + bytes) & -(uintptr_t)HUGE_PAGE;
    if (first < last) madvise((void *)first, last - first, MADV_HUGEPAGE); /* a wish: may fail */
#else
    (void)memory, (void)bytes;
#endif
}

/* Both return 0, or -1 when memory for the scratch of the threads is missing. */
int unscene_convolve(const Convolution *c)
{
    const Kernels *kernels = kernels_of_this_processor();
    ConvolveTask *const task = kernels->convolve[c->is_double != 0];
    if (c->targets == 0) return 0;
    const ptrdiff_t number_bytes = c->is_double ? sizeof(double) : sizeof(float);
    const ptrdiff_t panel = 2 * kernels->vector_bytes / number_bytes;

    /* As many equal tiles as keep all threads busy to the end; few rows are split by columns too. */
    const ptrdiff_t rounds = divide_up(c->targets, c->threads * TILE);
    const ptrdiff_t tile = divide_up(c->targets, rounds * c->threads);
    const ptrdiff_t tiles = divide_up(c->targets, tile), panels = divide_up(c->outputs, panel);
    const ptrdiff_t splits = tile >= TILE / 4 || panels < 2 ? 1 : 2;
    const ptrdiff_t columns = divide_up(panels, splits) * panel;
    const size_t bytes = c->inputs * panel * number_bytes + 2 * tile * sizeof(int32_t);
    ask_for_huge_pages(c->output, c->targets * c->outputs * number_bytes);
    int failed = 0;
#pragma omp parallel num_threads(c->threads) reduction(| : failed)
    {
        void *const scratch = malloc(bytes);
        failed = scratch == NULL;
#pragma omp for schedule(dynamic)
        for (ptrdiff_t i = 0; i < tiles * splits; i++) {
            const ptrdiff_t first = i / splits * tile, from = i % splits * columns;
            const ptrdiff_t last = minimum(first + tile, c->targets);
            const ptrdiff_t to = minimum(from + columns, c->outputs);
            if (!failed && first < last && from < to) task(c, first, last, from, to, scratch);
        }
        free(scratch);
    }
    return -failed;
}

int unscene_weight_gradient(const WeightGradient *g)
{
    const Kernels *kernels = kernels_of_this_processor();
    WeightTask *const task = kernels->weight_gradient[g->is_double != 0];
    const size_t number_bytes = g->is_double ? sizeof(double) : sizeof(float);
    const size_t bytes = PAIR_BLOCK * (2 * kernels->vector_bytes + CHANNEL_BLOCK * number_bytes);
    const ptrdiff_t blocks = divide_up(g->inputs, CHANNEL_BLOCK);
    int failed = 0;
#pragma omp parallel num_threads(g->threads) reduction(| : failed)
    {
        void *const scratch = malloc(bytes);
        failed = scratch == NULL;
        for (ptrdiff_t first = 0; first < g->targets; first += ROW_BLOCK) {
            const ptrdiff_t last = minimum(first + ROW_BLOCK, g->targets);
#pragma omp for schedule(dynamic)
            for (ptrdiff_t i = 0; i < g->cells * blocks; i++) {
                const ptrdiff_t from = i % blocks * CHANNEL_BLOCK;
                const ptrdiff_t to = minimum(from + CHANNEL_BLOCK, g->inputs);
                if (!failed) task(g, i / blocks, first, last, from, to, scratch);
            }
        }
        free(scratch);
    }
    return -failed;
}

/* Walks two places of one sorted list: a row, and the kernel column that begins `shift` keys further.
   rows is (K^3, count); a pair is written at its cell and, seen from the other side, at
   the opposite cell, so that half of the columns suffice. */
static void walk_column(const int64_t *keys, int64_t count, int64_t first, int64_t last,
                        int64_t shift, int64_t length, int64_t cell, int64_t cell_step,
                        int64_t last_cell, int32_t *rows)
{
    int64_t low = 0, high = count; /* the first row whose key reaches the column of row `first` */
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (keys[middle] < keys[first] + shift) low = middle + 1;
        else high = middle;
    }
    for (int64_t row = first; row < last; row++) {
        const int64_t lowest = keys[row] + shift;
        while (low < count && keys[low] < lowest) low++;
        for (int64_t other = low; other < count && keys[other] - lowest < length; other++) {
            const int64_t here = cell + (keys[other] - lowest) * cell_step;
            rows[here * count + row] = other;
            rows[(last_cell - here) * count + other] = row;
        }
    }
}

void unscene_neighbor_rows(const int64_t *keys, int64_t count, int64_t y_extent, int64_t z_extent,
                           int64_t kernel_size, int64_t threads, int32_t *rows)
{
    const int64_t size = kernel_size, radius = size / 2, last_cell = size * size * size - 1;
    const int64_t columns = size * size / 2 + 1, blocks = divide_up(count, KEY_BLOCK);
    ask_for_huge_pages(rows, (last_cell + 1) * count * sizeof(int32_t));
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t cell = 0; cell <= last_cell; cell++)
            memset(rows + cell * count, -1, count * sizeof(int32_t));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < columns * blocks; i++) {
            const int64_t column = size * size / 2 + i / blocks; /* the first is the centre */
            const int64_t dx = column / size - radius, dy = column % size - radius;
            const int64_t lowest_dz = i / blocks == 0 ? 0 : -radius; /* a row meets itself at 0 */
            const int64_t first = i % blocks * KEY_BLOCK;
            const int64_t cell =
                (dx + radius) + size * (dy + radius) + size * size * (lowest_dz + radius);
            walk_column(keys, count, first, minimum(first + KEY_BLOCK, count),
                        (dx * y_extent + dy) * z_extent + lowest_dz, radius - lowest_dz + 1, cell,
                        size * size, last_cell, rows);
        }
    }
}
