/* The inner loops of native_kernel.c, compiled once per number type and instruction set.

   The including file defines REAL (float or double), VECTOR_BYTES (width of a vector register), ROWS
   (rows of a register tile), TARGET (the attribute that allows the instructions) and NAME(x). The
   vectors are those of GCC and Clang: nothing below names an instruction. */

typedef REAL NAME(vector) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL))));

enum { NAME(LANES) = VECTOR_BYTES / sizeof(REAL), NAME(PANEL) = 2 * NAME(LANES) };

#define INLINE TARGET static inline __attribute__((always_inline))

/* Calls CALL(rows) with the number of rows as a constant, so that its loops are unrolled. */
#define WITH_ROWS(rows, CALL)    \
    switch (rows) {              \
        case 1: CALL(1); break;  \
        case 2: CALL(2); break;  \
        case 3: CALL(3); break;  \
        case 4: CALL(4); break;  \
        case 5: CALL(5); break;  \
        default: CALL(6); break; \
    }

INLINE void NAME(add)(REAL *output, ptrdiff_t width, const NAME(vector) sums[2])
{
    if (width == NAME(PANEL)) {
        *(NAME(vector) *)output += sums[0];
        *(NAME(vector) *)(output + NAME(LANES)) += sums[1];
    } else {
        for (ptrdiff_t j = 0; j < width; j++) output[j] += sums[j / NAME(LANES)][j % NAME(LANES)];
    }
}

/* Copies `width` columns of (rows, stride) numbers into a panel, whose rows are consecutive. */
INLINE void NAME(pack)(REAL *panel, const REAL *from, ptrdiff_t rows, ptrdiff_t stride,
                       ptrdiff_t width)
{
    for (ptrdiff_t i = 0; i < rows; i++, panel += NAME(PANEL), from += stride)
        if (width == NAME(PANEL)) memcpy(panel, from, NAME(PANEL) * sizeof(REAL));
        else memcpy(panel, from, width * sizeof(REAL));
}

/* output[targets[r]] += features[sources[r]] @ panel for r < rows, a constant: (rows, channels) by
   (channels, PANEL) with all sums in registers. */
INLINE void NAME(multiply)(int rows, const Convolution *c, REAL *output, ptrdiff_t width,
                           const int32_t *targets, const int32_t *sources, const REAL *panel)
{
    const REAL *features[ROWS];
    NAME(vector) sums[ROWS][2];
    for (int r = 0; r < rows; r++) {
        features[r] = (const REAL *)c->features + sources[r] * c->inputs;
        sums[r][0] = sums[r][1] = (NAME(vector)){0};
    }
    for (ptrdiff_t i = 0; i < c->inputs; i++, panel += NAME(PANEL)) {
        const NAME(vector) left = *(const NAME(vector) *)panel;
        const NAME(vector) right = *(const NAME(vector) *)(panel + NAME(LANES));
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            sums[r][0] += features[r][i] * left;
            sums[r][1] += features[r][i] * right;
        }
    }
    for (int r = 0; r < rows; r++) NAME(add)(output + targets[r] * c->outputs, width, sums[r]);
}

/* One task of a convolution: the target rows first..last, the output columns from..to. */
TARGET static void NAME(convolve)(const Convolution *c, ptrdiff_t first, ptrdiff_t last,
                                  ptrdiff_t from, ptrdiff_t to, void *scratch)
{
    REAL *const panel = scratch;
    int32_t *const targets = (int32_t *)(panel + c->inputs * NAME(PANEL));
    int32_t *const sources = targets + (last - first);
    REAL *const output = c->output;
    for (ptrdiff_t row = first; row < last; row++)
        memset(output + row * c->outputs + from, 0, (to - from) * sizeof(REAL));

    for (ptrdiff_t cell = 0; cell < c->cells; cell++) {
        const ptrdiff_t pairs = find_pairs(c->rows + cell * c->cell_stride, c->row_stride,
                                                 first, last, targets, sources);
        if (pairs == 0) continue;
        const REAL *const weight = (const REAL *)c->weight + cell * c->inputs * c->outputs;
        for (ptrdiff_t column = from; column < to; column += NAME(PANEL)) {
            const ptrdiff_t width = minimum(to - column, NAME(PANEL));
            NAME(pack)(panel, weight + column, c->inputs, c->outputs, width);
            for (ptrdiff_t p = 0; p < pairs; p += ROWS) {
                const ptrdiff_t rows = minimum(pairs - p, ROWS);
#define MULTIPLY(n) \
    NAME(multiply)(n, c, output + column, width, targets + p, sources + p, panel)
                WITH_ROWS(rows, MULTIPLY)
#undef MULTIPLY
            }
        }
    }

    const REAL *const scale = c->scale, *const shift = c->shift, *const residual = c->residual;
    for (ptrdiff_t row = first; row < last; row++) {
        REAL *const y = output + row * c->outputs;
        if (scale)
            for (ptrdiff_t j = from; j < to; j++) y[j] *= scale[j];
        if (shift)
            for (ptrdiff_t j = from; j < to; j++) y[j] += shift[j];
        if (residual)
            for (ptrdiff_t j = from; j < to; j++) y[j] += residual[row * c->outputs + j];
        if (c->relu)
            for (ptrdiff_t j = from; j < to; j++) y[j] = y[j] < 0 ? 0 : y[j]; /* NaN stays */
    }
}

/* sums[r] += the products of channel r of the gathered features (pairs, CHANNEL_BLOCK) with the panel
   of gathered gradients (pairs, PANEL), for r < rows, a constant. */
INLINE void NAME(multiply_transposed)(int rows, REAL *sums, ptrdiff_t outputs, ptrdiff_t width,
                                      ptrdiff_t pairs, const REAL *features, const REAL *panel)
{
    NAME(vector) products[ROWS][2];
    for (int r = 0; r < rows; r++) products[r][0] = products[r][1] = (NAME(vector)){0};
    for (ptrdiff_t p = 0; p < pairs; p++, features += CHANNEL_BLOCK, panel += NAME(PANEL)) {
        const NAME(vector) left = *(const NAME(vector) *)panel;
        const NAME(vector) right = *(const NAME(vector) *)(panel + NAME(LANES));
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            products[r][0] += features[r] * left;
            products[r][1] += features[r] * right;
        }
    }
    for (int r = 0; r < rows; r++) NAME(add)(sums + r * outputs, width, products[r]);
}

/* One task of a weight gradient: adds the target rows first..last to the sums of one kernel cell and
   of the input channels from..to. */
TARGET static void NAME(weight_gradient)(const WeightGradient *g, ptrdiff_t cell, ptrdiff_t first,
                                         ptrdiff_t last, ptrdiff_t from, ptrdiff_t to,
                                         void *scratch)
{
    REAL *const panel = scratch;
    REAL *const gathered = panel + PAIR_BLOCK * NAME(PANEL);
    const REAL *const features = (const REAL *)g->features + from, *const gradient = g->gradient;
    REAL *const sums = (REAL *)g->sums + cell * g->inputs * g->outputs;
    int32_t all_targets[ROW_BLOCK], all_sources[ROW_BLOCK];
    const ptrdiff_t all_pairs = find_pairs(g->rows + cell * g->cell_stride, g->row_stride,
                                                 first, last, all_targets, all_sources);
    for (ptrdiff_t start = 0; start < all_pairs; start += PAIR_BLOCK) {
        const ptrdiff_t pairs = minimum(all_pairs - start, PAIR_BLOCK);
        const int32_t *const targets = all_targets + start, *const sources = all_sources + start;
        for (ptrdiff_t p = 0; p < pairs; p++)
            memcpy(gathered + p * CHANNEL_BLOCK, features + sources[p] * g->inputs,
                   (to - from) * sizeof(REAL));
        for (ptrdiff_t column = 0; column < g->outputs; column += NAME(PANEL)) {
            const ptrdiff_t width = minimum(g->outputs - column, NAME(PANEL));
            for (ptrdiff_t p = 0; p < pairs; p++)
                memcpy(panel + p * NAME(PANEL), gradient + targets[p] * g->outputs + column,
                       width * sizeof(REAL));
            for (ptrdiff_t channel = from; channel < to; channel += ROWS) {
                const ptrdiff_t rows = minimum(to - channel, ROWS);
                REAL *const corner = sums + channel * g->outputs + column;
#define MULTIPLY(n)                                               \
    NAME(multiply_transposed)(n, corner, g->outputs, width, pairs, \
                              gathered + channel - from, panel)
                WITH_ROWS(rows, MULTIPLY)
#undef MULTIPLY
            }
        }
    }
}

#undef INLINE
#undef WITH_ROWS
#undef REAL
#undef VECTOR_BYTES
#undef TARGET
#undef NAME
