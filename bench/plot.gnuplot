# Time against tokens of whole policies, each beside its limit: gnuplot -e "data='x.dat'; picture='x.svg'" plot.gnuplot
# A block of the data is a policy: its name, then lines of tokens, ms and the limit's ms. Colours and greys are such that
# the picture can be read on white and on black; its own ground is transparent.

set terminal svg size 760,460 font "sans-serif,13" dynamic
set output picture
set border 3 lc rgb "#808890"
set tics nomirror textcolor rgb "#808890"
set grid lc rgb "#808890" lw 0.4 dt 3
set key outside right center textcolor rgb "#808890" samplen 2 spacing 1.3
set title "Evicting four fifths of one layer, bf16, one thread; dashed: the machine's limit" textcolor rgb "#808890"
set xlabel "tokens" textcolor rgb "#808890"
set ylabel "ms" textcolor rgb "#808890"
set logscale xy 2
set logscale y 10
set xrange [7000:150000]
set xtics (8192, 32768, 131072)

array colours[6] = ["#1f8fd0", "#e07b1f", "#2fa35a", "#c75fb5", "#d9493f", "#9a8a2a"]
stats data using 0 nooutput
blocks = STATS_blocks
name(i) = system(sprintf("awk -v want=%d 'BEGIN { start = 1 } /^$/ { start = 1; next } start { ++seen; start = 0; if (seen == want) { gsub(\"_\", \"-\"); print } }' %s", i + 1, data))

plot for [i = 0:blocks - 1] data index i every ::1 using 1:2 with linespoints lw 2 pt 7 ps 0.6 lc rgb colours[i + 1] title name(i), \
     for [i = 0:blocks - 1] data index i every ::1 using 1:3 with lines lw 1.5 dt 2 lc rgb colours[i + 1] notitle
