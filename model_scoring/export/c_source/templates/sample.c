/* Every n-th pixel of every n-th row from some pixel on: the phases that a convolution with stride
   reads, cuts, borders of other widths, and the image itself. */

typedef struct {
    planes in, out;
    grid in_grid, out_grid;
    int32_t count, step_y, step_x, from_y, from_x;
    float outside; /* what stands for pixels outside the input */
} sample;

static void sample_planes(const sample *s, const float *in, float *a)
{
    const grid *g = &s->out_grid;
    for (int c = 0; c < s->count; c++)
        for (int i = 0; i < g->height; i++) {
            const int y = s->from_y + i * s->step_y;
            const int within = y >= 0 && y < s->in_grid.height;
            const float *x = in + plane(&s->in, c) + (within ? y * s->in_grid.pitch : 0);
            float *to = a + plane(&s->out, c) + i * g->pitch;
            int from = s->from_x < 0 ? (s->step_x - 1 - s->from_x) / s->step_x : 0;
            int end = (s->in_grid.width - s->from_x + s->step_x - 1) / s->step_x;
            end = within && end > 0 ? (end < g->width ? end : g->width) : 0;
            from = from < end ? from : end;
            x += s->from_x;
            for (int j = 0; j < from; j++)
                to[j] = s->outside;
            if (s->step_x == 1)
                for (int j = from; j < end; j++)
                    to[j] = x[j];
            else if (s->step_x == 2)
                for (int j = from; j < end; j++)
                    to[j] = x[2 * j];
            else
                for (int j = from; j < end; j++)
                    to[j] = x[j * s->step_x];
            for (int j = end; j < g->width; j++)
                to[j] = s->outside;
        }
    clear_borders(a, &s->out, s->count, g);
}
