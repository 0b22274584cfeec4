void name_prepare(const unsigned char *rgb, float *image)
{
    for (int c = 0; c < NAME_CHANNELS; c++)
        for (int i = 0; i < NAME_HEIGHT * NAME_WIDTH; i++)
            *image++ = ((float)rgb[i * NAME_CHANNELS + c] / 255 - name_mean[c]) / name_std[c];
}

int name_run(const float *image, float *logits, void *arena)
{
    static const planes output = @LOGITS@;
    if (!image || !logits || !arena)
        return 1;
    float *a = (float *)(((uintptr_t)arena + 63) / 64 * 64), *scratch = a; /* a cache line's start */
    (void)scratch;
    @CALLS@
    for (int i = 0; i < NAME_CLASSES; i++)
        logits[i] = a[plane(&output, i)];
    return 0;
}
