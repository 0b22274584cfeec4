#ifdef NAME_MAIN
#include <stdio.h>

int main(void)
{
    static float image[NAME_CHANNELS * NAME_HEIGHT * NAME_WIDTH], logits[NAME_CLASSES];
    static float arena[NAME_ARENA_BYTES / sizeof(float)];
    size_t bytes; /* of float32 images (channels, height, width), one after the other */
    while ((bytes = fread(image, 1, sizeof image, stdin)) == sizeof image) {
        if (name_run(image, logits, arena))
            return 1;
        for (int i = 0; i < NAME_CLASSES; i++)
            printf("%.9g%c", (double)logits[i], i + 1 < NAME_CLASSES ? ' ' : '\n');
    }
    if (bytes)
        fprintf(stderr, "the last image has %zu bytes of %zu\n", bytes, sizeof image);
    return bytes != 0;
}
#endif
